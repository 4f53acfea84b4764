"""The U-Net (spec: ddpm_ddim.md section 8, test 15; sr3.md section 4, tests 6 and 7; segdiff_sdedit.md A1, tests 1, 2)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from _cli import CONFIGS
from torch.nn import functional as F

from ldae.denoisers.guidance import Guided
from ldae.denoisers.unet import UNet
from ldae.denoisers.vit import ViTDenoiser
from ldae.diffusion.schedules import Cosine, DDPMLinear
from ldae.errors import ConfigError
from ldae.nn.embeddings import sinusoid, sinusoid_ddpm
from ldae.nn.resize import enlarged
from ldae.nn.rrdb import RRDB, RRDBNet
from ldae.nn.unet_blocks import AddedNorm, Form, PixelAttention, ResidualBlock, ScaledNorm
from ldae.parts import construct
from ldae.system import System
from ldae.tasks.images import Images
from ldae.types import Batch, Cond, Draws, NoiseLevel

PIXELS = ("data=cifar10", "tokenizer=pixel", "tokenizer.patch=1", "input=latent", "output=latent")
SIMPLE = ("target=eps", "schedule=ddpm_linear", "weight=one", "metric=mse")
# (H, W), channels of x_t, of the answer and of the conditioning image -> parameters
SIZES = {
    "unet_cifar10": (32, 3, 3, 0, 35_746_307),
    "unet_256": (256, 3, 3, 0, 113_673_219),
    "unet_iddpm": (32, 3, 6, 0, 52_546_438),
    "unet_32": (32, 3, 3, 0, 1_624_323),
    "unet_64": (64, 3, 3, 0, 4_314_307),
    "unet_sr3_32": (32, 3, 3, 3, 1_923_619),
    "unet_sr3_128": (128, 3, 3, 3, 574_771_203),
    "unet_segdiff_64": (64, 1, 1, 3, 2_011_809),
    "unet_segdiff_256": (256, 1, 1, 3, 164_154_753),
}
SR3 = {"level": "gamma", "sinusoid": "improved", "scale_shift": True, "resample": "block", "rescale": True}
VARIANTS = {
    "ddpm": {},
    "improved": {"level": "scaled", "sinusoid": "improved", "scale_shift": True, "heads": 4, "dropout": 0.3},
    "sr3": {**SR3, "cond_channels": 3},
    "segdiff": {"sinusoid": "improved", "encoder": {"blocks": 1, "width": 8, "growth": 4}, "cond_channels": 3},
    "classes": {"classes": 5},
}


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def level(*t, gamma=0.6, sigma=0.8):
    return NoiseLevel(torch.tensor(t), torch.full((len(t),), gamma), torch.full((len(t),), sigma))


def network(side=8, **settings):
    torch.manual_seed(0)
    arguments = {"in_shape": (3, side, side), "out_shape": (3, side, side), "schedule": DDPMLinear()}
    sizes = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
    return UNet(**(arguments | sizes | settings)).eval()


def randomised(net, by=0.1):
    """As after some training: no parameter is at its start."""
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.add_(by * normal(i, *p.shape))
    return net


def told(count, seed=7, side=4):
    return Cond(label=torch.arange(count) % 5, image=normal(seed, count, 3, side, side).clamp(-1, 1))


def trained(name):
    """A network of one kind, past its start, for 8 x 8 pixels, and what it is told of two images."""
    return randomised(network(**VARIANTS[name])), told(2, side=8)


# sizes and start


def parameters(config, name, **given):
    side, ins, outs, cond, _ = SIZES[name]
    spec = {k: v for k, v in config("pretrain", f"denoiser={name}")["denoiser"].items() if k != "part"}
    shapes = {"in_shape": (ins, side, side), "out_shape": (outs, side, side), "cond_channels": cond}
    with torch.device("meta"):
        net = construct(UNet, spec, {**shapes, "schedule": DDPMLinear(), "classes": 0, **given})
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_every_size_has_exactly_its_parameters(config, name):
    """DDPM's and improved DDPM's as in their code; the YAML says the number of each."""
    count = SIZES[name][-1]
    assert parameters(config, name) == count
    assert f"{count:,} parameters" in (CONFIGS / "denoiser" / f"{name}.yaml").read_text().replace("\n# ", " ")


def test_the_system_builds_ddpms_network_from_the_config_alone(config):
    system = System(config("pretrain", *PIXELS, *SIMPLE, "denoiser=unet_cifar10", "variance=learned_range"))
    assert system["variance"].answers == 2
    with torch.device("meta"):
        net = system["denoiser"]
    assert (net.first.in_channels, net.last.out_channels) == (3, 6)
    assert sum(p.numel() for p in net.parameters()) == 35_746_307 + 3 * (9 * 128 + 1)


class Upscaled(Images):
    image_channels = 3


@pytest.mark.parametrize(("name", "first"), [("unet_sr3_32", 6), ("unet_segdiff_64", 3)])
def test_the_system_tells_the_network_of_the_tasks_image(config, name, first):
    system = System(config("pretrain", *PIXELS, *SIMPLE, f"denoiser={name}"))
    system.made["task"] = Upscaled()
    net = system["denoiser"]
    assert (net.first.in_channels, net.cond_channels) == (first, 3)
    assert (net.encoder is None) == (first == 6)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_new_network_answers_zero_and_its_branches_are_closed(name):
    net, x = network(**VARIANTS[name]), normal(1, 2, 3, 8, 8)
    assert torch.equal(net(x, level(3, 900), told(2)), torch.zeros(2, 3, 8, 8))
    tokens = net.encode(x, level(3, 900), told(2))
    other = net.encode(x, level(0, 5, gamma=0.9), told(2))
    assert all(torch.equal(tokens[k], other[k]) for k in net.layers)  # nothing of the condition comes through
    assert net.layers == (1, 2, 3, 4, 5, 6, 7)
    assert net.encoder_layer == 3


def test_the_loss_at_the_start_is_one(config):
    """L_simple, 64 images: the answer is 0 and the mean square of the noise is 1 (spec, test 15)."""
    torch.manual_seed(0)
    system = System(config("pretrain", *PIXELS, *SIMPLE, "denoiser=unet_32"))
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    system["tokenizer"].fit([2 * images - 1])
    loss, _ = system["objective"](Batch(images, torch.zeros(64).long(), torch.arange(64)), Draws([7]))
    assert loss.item() == pytest.approx(1, abs=0.02)
    loss.backward()
    assert system["denoiser"].last.weight.grad.abs().max() > 0


def test_weights_start_by_the_mean_of_both_fans_and_the_encoders_small():
    net = network(channels=64, encoder={"blocks": 1}, cond_channels=3)
    block = net.down[1].layers[0].block
    for weight, fans in (
        (net.first.weight, 9 * (3 + 64)),
        (block.conv1.weight, 9 * (64 + 128)),
        (block.skip.weight, 64 + 128),
        (net.level.linear.weight, 64 + 256),
        (net.middle.before.attention.attention.qkv.weight, 128 + 128),  # not 128 + 3 * 128
    ):
        bound = math.sqrt(6 / fans)
        assert 0.97 * bound < weight.abs().max() <= bound
    dense = net.encoder.blocks[0].dense[0].convs[0]
    assert dense.weight.std().item() == pytest.approx(0.1 * math.sqrt(2 / 1.04 / (9 * 64)), rel=0.03)
    assert all(p.abs().max() == 0 for name, p in net.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("name", VARIANTS)
def test_opened_gates_let_the_condition_through_and_are_always_the_same(name):
    nets = [network(**VARIANTS[name]) for _ in range(2)]
    torch.manual_seed(1)
    for net in nets:
        net.open_gates()
    x, layer = normal(1, 2, 3, 8, 8), nets[0].encoder_layer
    first, second = (net.encode(x, level(3, 900), told(2), [layer])[layer] for net in nets)
    assert torch.equal(first, second)
    other = nets[0].encode(x, level(500, 900, gamma=0.9), told(2), [layer])[layer]
    assert (first[0] - other[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_learns(name):
    net, cond = trained(name)
    loss = (net(normal(1, 2, 3, 8, 8), level(3, 900), cond) - normal(2, 2, 3, 8, 8)) ** 2
    loss.mean().backward()
    unmoved = {n for n, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
    assert unmoved == set()


def test_dropout_is_for_training():
    net, x = randomised(network(dropout=0.5)), normal(1, 2, 3, 8, 8)
    assert torch.equal(net(x, level(3, 900)), net(x, level(3, 900)))
    net.train()
    assert not torch.allclose(net(x, level(3, 900)), net(x, level(3, 900)), atol=1e-3)


# what the network is told of the noise


def _reference_ddpm_sinusoid(t, width):
    rows = []
    for step in t.tolist():
        angles = [step * math.exp(-math.log(10000) * k / (width // 2 - 1)) for k in range(width // 2)]
        rows.append([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
    return torch.tensor(rows)


def test_ddpms_waves_are_sines_first_and_the_slowest_is_a_ten_thousandth():
    t = torch.tensor([0, 1, 7, 400, 999])
    assert torch.allclose(sinusoid_ddpm(t, 128), _reference_ddpm_sinusoid(t, 128), atol=1e-4)
    assert sinusoid_ddpm(torch.tensor([10000]), 128)[0, 63].item() == pytest.approx(math.sin(1), abs=1e-5)
    assert (sinusoid_ddpm(t, 128) - torch.cat(sinusoid(t, 128).chunk(2, 1)[::-1], 1)).abs().max() > 0.01


def test_the_condition_is_two_linears_of_the_waves():
    net, t = randomised(network()), level(0, 7, 999)
    one, two = net.level.linear, net.level.second
    assert (one.in_features, one.out_features, two.out_features) == (16, 64, 64)
    hidden = F.silu(_reference_ddpm_sinusoid(t.t, 16) @ one.weight.T + one.bias)
    assert torch.allclose(net.level(t), hidden @ two.weight.T + two.bias, atol=1e-4)


def test_told_the_index_it_hears_nothing_else():
    net, x = randomised(network()), normal(1, 2, 3, 8, 8)
    assert torch.equal(net(x, level(3, 900)), net(x, level(3, 900, gamma=0.1, sigma=2.0)))
    assert not torch.allclose(net(x, level(3, 900)), net(x, level(4, 900)), atol=1e-4)


def test_a_scaled_step_of_4000_is_a_step_of_1000():
    long, short = (randomised(network(schedule=s, **VARIANTS["improved"])) for s in (Cosine(T=4000), Cosine(T=1000)))
    x = normal(1, 2, 3, 8, 8)
    assert torch.equal(long(x, level(400, 3600)), short(x, level(100, 900)))
    assert torch.equal(long.level(level(2))[0], short.level(replace(level(0), t=torch.tensor([0.5])))[0])


def test_told_gamma_it_is_a_function_of_gamma_alone():
    """The same level reached by two schedules of different lengths (sr3.md, test 6)."""
    net, cond = trained("sr3")
    x, gamma2 = normal(1, 2, 3, 8, 8), 0.37
    two_paths = [level(*t, gamma=math.sqrt(gamma2), sigma=s) for t, s in (((3, 3), 0.8), ((999, 40), 0.2))]
    first, second = (net(x, path, cond) for path in two_paths)
    assert torch.equal(first, second)
    assert not torch.allclose(first, net(x, level(3, 3, gamma=math.sqrt(0.38)), cond), atol=1e-4)


def test_nearly_clean_levels_are_told_apart():
    """gamma^2 = 0.999999 and 0.9999 (sr3.md, test 6), and both from a clean input."""
    net = network(channels=32, **VARIANTS["sr3"])
    codes = [net.level(level(0, gamma=math.sqrt(g)))[0] for g in (1.0, 0.999999, 0.9999, 0.99)]
    waves = [sinusoid(net.level.reading(level(0, gamma=math.sqrt(g))), 32)[0] for g in (0.999999, 0.9999)]
    assert (waves[0] - waves[1]).norm() > 0.1
    assert (codes[1] - codes[2]).norm() > 1e-2
    assert (codes[0] - codes[1]).norm() > 1e-4
    assert (codes[2] - codes[3]).norm() > 0.1


def test_no_label_is_the_null_row():
    net, x = randomised(network(classes=5)), normal(1, 2, 3, 8, 8)
    null = net(x, level(3, 900), Cond(label=torch.tensor([5, 5])))
    for cond in (None, Cond()):
        assert torch.equal(net(x, level(3, 900), cond), null)
    assert not torch.allclose(net(x, level(3, 900), Cond(label=torch.tensor([5, 1])))[1], null[1], atol=1e-3)


# blocks


def _group_norm(x, groups, weight, bias):
    B, C, H, W = x.shape
    grouped = x.reshape(B, groups, -1)
    mean, variance = grouped.mean(-1, keepdim=True), grouped.var(-1, unbiased=False, keepdim=True)
    flat = ((grouped - mean) / (variance + 1e-6).sqrt()).reshape(B, C, H, W)
    return flat * weight[:, None, None] + bias[:, None, None]


def _swish(x):
    return x / (1 + torch.exp(-x))


def _reference_residual_block(block, x, c, groups, scale_shift, resampled, divisor):
    """The block written out: one statement for each of its operations."""
    p = {name: value.double() for name, value in block.state_dict().items()}
    h = _swish(_group_norm(x, groups[0], p["norm1.weight"], p["norm1.bias"]))
    h, x = resampled(h), resampled(x)
    h = F.conv2d(h, p["conv1.weight"], p["conv1.bias"], padding=1)
    told = (c @ p["norm2.linear.weight"].T + p["norm2.linear.bias"])[:, :, None, None]
    width = h.shape[1]
    if scale_shift:
        h = _group_norm(h, groups[1], p["norm2.norm.weight"], p["norm2.norm.bias"])
        h = h * (1 + told[:, :width]) + told[:, width:]
    else:
        h = _group_norm(h + told, groups[1], p["norm2.norm.weight"], p["norm2.norm.bias"])
    h = F.conv2d(_swish(h), p["gate.weight"], p["gate.bias"], padding=1)
    if "skip.weight" in p:
        x = torch.einsum("oi,bihw->bohw", p["skip.weight"][:, :, 0, 0], x) + p["skip.bias"][:, None, None]
    return (x + h) / divisor


def _halved(x):
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


@pytest.mark.parametrize(
    ("channels", "resampling", "resampled"),
    [
        (32, None, lambda x: x),
        (64, None, lambda x: x),
        (64, torch.nn.AvgPool2d(2), _halved),
        (64, torch.nn.Upsample(scale_factor=2), lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3)),
    ],
)
@pytest.mark.parametrize(("norm", "divisor"), [(AddedNorm, 1.0), (ScaledNorm, math.sqrt(2))])
def test_a_residual_block_is_the_papers(channels, resampling, resampled, norm, divisor):
    form = Form(24, norm, dropout=0.3, heads=1, scale=1 / divisor)
    block = randomised(ResidualBlock(channels, 64, form, resampling)).eval()
    x, c = normal(1, 2, channels, 8, 8), normal(2, 2, 24)
    groups = (channels // 4, 16)
    expected = _reference_residual_block(
        block, x.double(), c.double(), groups, norm is ScaledNorm, resampled, divisor
    ).float()
    assert torch.allclose(block(x, c), expected, atol=1e-4)


def test_groups_are_32_wherever_channels_allow():
    net = network(channels=128, multipliers=(1, 2))
    norms = [m for m in net.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {m.num_groups for m in norms} == {32}
    assert {m.eps for m in norms} == {1e-6}


def test_a_rescaled_sum_keeps_the_variance():
    x, h = normal(1, 4, 8, 32, 32), normal(2, 4, 8, 32, 32)
    form = Form(8, AddedNorm, 0.0, 1, math.sqrt(0.5))
    assert form.sum(x, h).var().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_knows_no_order_of_pixels_and_scales_by_the_width_of_a_head(heads):
    layer = randomised(PixelAttention(16, Form(8, AddedNorm, 0.0, heads, 1.0)), by=0.5)
    x, order = normal(1, 2, 16, 4, 6), torch.randperm(24, generator=torch.Generator().manual_seed(0))
    shuffled = x.flatten(2)[:, :, order].reshape(x.shape)
    assert torch.allclose(layer(shuffled), layer(x).flatten(2)[:, :, order].reshape(x.shape), atol=1e-5)
    tokens = layer.norm(x).flatten(2).transpose(1, 2)  # (B, N, C)
    q, k, v = layer.attention.qkv(tokens).chunk(3, dim=-1)
    mixed = []
    for part in torch.arange(16).chunk(heads):
        weights = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(16 / heads), dim=-1)
        mixed.append(weights @ v[..., part])
    expected = x + layer.gate(torch.cat(mixed, -1)).transpose(1, 2).reshape(x.shape)
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_halving_pads_at_the_right_and_the_bottom_only():
    """A kernel of one tap: its corners read x[2i, 2j] and x[2i + 2, 2j + 2], which is 0 beyond the edge."""
    down, x = network().down[0].way, normal(1, 1, 16, 8, 8)
    conv = down.layer.conv
    for row, column in ((0, 0), (2, 2), (0, 2)):
        with torch.no_grad():
            conv.weight.zero_()[range(16), range(16), row, column] = 1
        expected = F.pad(x, (0, 2, 0, 2))[:, :, row : row + 8 : 2, column : column + 8 : 2]
        assert torch.equal(down(x, None), expected)


def test_doubling_repeats_pixels_and_convolves():
    up, x = network().up[0].way, normal(1, 1, 32, 4, 4)
    with torch.no_grad():
        up.layer.conv.weight.zero_()[range(32), range(32), 1, 1] = 1
    assert torch.equal(up(x, None), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_the_way_up_reads_the_first_convolution_every_layer_and_every_halving():
    net, seen, made = randomised(network(multipliers=(1, 2, 4), blocks=2, attention=(2,))), [], []
    for stage in net.up:
        for layer in stage.layers:
            layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    keep = lambda module, args, out: made.append(out)  # noqa: E731
    net.first.register_forward_hook(keep)
    for stage in net.down:
        for layer in stage.layers:
            layer.register_forward_hook(keep)
        if stage.way is not None:
            stage.way.register_forward_hook(keep)
    net(normal(1, 1, 3, 8, 8), level(3))
    widths = [layer.block.conv1.in_channels for stage in net.up for layer in stage.layers]
    assert widths == [64 + 64, 64 + 64, 64 + 32, 64 + 32, 32 + 32, 32 + 16, 32 + 16, 16 + 16, 16 + 16]
    assert len(made) == len(seen) == 9
    for kept, read in zip(reversed(made), seen, strict=True):
        assert torch.equal(read[:, -kept.shape[1] :], kept)


# the conditioning image


def _keys(x):
    """The cubic convolution kernel, a = -1/2 (Eq. 15 of Keys, 1981)."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def test_an_image_grows_by_keys_kernel():
    impulse = torch.zeros(1, 1, 8, 8)
    impulse[0, 0, 4, 4] = 1
    weights = torch.tensor([_keys((i + 0.5) / 4 - 0.5 - 4) for i in range(32)])
    assert torch.allclose(enlarged(impulse, (32, 32))[0, 0], torch.outer(weights, weights), atol=1e-5)
    image = normal(1, 2, 3, 8, 8)
    assert torch.equal(enlarged(image, (8, 8)), image)
    assert torch.allclose(enlarged(torch.full((1, 3, 4, 4), 0.3), (16, 8)), torch.tensor(0.3), atol=1e-6)


@pytest.mark.parametrize("name", ["sr3", "segdiff"])
def test_swapping_images_swaps_answers_and_images_count(name):
    """Same x_t and level, two images (sr3.md, test 7), smaller than x_t."""
    net, x = trained(name)[0], normal(1, 1, 3, 8, 8).expand(2, -1, -1, -1)
    cond = told(2, side=4)
    swapped = replace(cond, image=cond.image.flip(0))
    out = net(x, level(3, 3), cond)
    assert torch.allclose(net(x, level(3, 3), swapped), out.flip(0), atol=1e-5)
    assert (out[0] - out[1]).abs().max() > 1e-2
    assert (net(x, level(3, 3), replace(cond, image=torch.zeros_like(cond.image))) - out).abs().max() > 1e-2


def test_a_concatenated_image_is_seen_at_the_size_of_x_t():
    net, x, cond = trained("sr3")[0], normal(1, 2, 3, 8, 8), told(2, side=4)
    assert torch.equal(
        net(x, level(3, 3), cond), net(x, level(3, 3), replace(cond, image=enlarged(cond.image, (8, 8))))
    )


@pytest.mark.parametrize("name", ["sr3", "segdiff"])
@pytest.mark.parametrize("cond", [None, Cond(), Cond(label=torch.tensor([1, 2]))])
def test_a_missing_image_is_refused(name, cond):
    net = network(**VARIANTS[name])
    with pytest.raises(ConfigError, match=r"cond.image=None is what this network is conditioned on"):
        net(normal(1, 2, 3, 8, 8), level(3, 900), cond)
    with pytest.raises(ConfigError, match=r"cond.image=None"):
        net.encode(normal(1, 2, 3, 8, 8), level(3, 900), cond)


def test_an_image_of_other_channels_or_too_large_is_refused():
    net, x = network(**VARIANTS["sr3"]), normal(1, 2, 3, 8, 8)
    with pytest.raises(ConfigError, match="must have 3 channels"):
        net(x, level(3, 900), Cond(image=normal(2, 2, 1, 8, 8)))
    with pytest.raises(ConfigError, match="is larger than the 8 x 8"):
        net(x, level(3, 900), Cond(image=normal(2, 2, 3, 16, 16)))


def test_an_encoder_that_says_nothing_leaves_the_unconditional_network():
    """G = 0 (segdiff_sdedit.md, test 1): bit for bit."""
    net, cond = trained("segdiff")
    with torch.no_grad():
        net.encoder.last.weight.zero_()
        net.encoder.last.bias.zero_()
    plain = network(sinusoid="improved")
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("encoder.")})
    x = normal(1, 2, 3, 8, 8)
    assert torch.equal(net(x, level(3, 900), cond), plain(x, level(3, 900)))


def test_features_are_added_to_the_first_convolution_and_are_the_first_skip():
    """F = 0 leaves the image alone to be read (segdiff_sdedit.md, test 1)."""
    net, cond = trained("segdiff")
    x, seen = normal(1, 2, 3, 8, 8), []
    net.down[0].layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net.up[-1].layers[-1].register_forward_pre_hook(lambda module, args: seen.append(args[0][:, -16:]))
    net(x, level(3, 900), cond)
    assert torch.equal(seen[0], net.first(x) + net.encoder(cond.image))
    assert torch.equal(seen[1], seen[0])
    with torch.no_grad():
        net.first.weight.zero_()
    assert torch.equal(net(x, level(3, 3), cond), net(2 * x, level(3, 3), cond))
    assert not torch.allclose(*net(x, level(3, 3), cond), atol=1e-3)


def test_features_worked_out_once_give_the_same_bits():
    """segdiff_sdedit.md, test 2; through guidance too. Then the image is not read again."""
    net, cond = trained("segdiff")
    x = normal(1, 2, 3, 8, 8)
    small = replace(cond, image=normal(2, 2, 3, 4, 4))
    for given, wrapped in ((cond, net), (small, net), (cond, Guided(net, 1.0, 3))):
        ready = wrapped.prepared(given)
        assert ready.features.shape == (2, 16, 8, 8)
        assert wrapped.prepared(ready) is ready
        for t in (3, 900):
            expected = net(x, level(t, t), given)
            assert torch.equal(net(x, level(t, t), ready), expected)
            assert torch.equal(net(x, level(t, t), replace(ready, image=None)), expected)


def test_where_there_is_no_encoder_nothing_is_worked_out():
    vit = ViTDenoiser((3, 8, 8), (3, 8, 8), (4, 4), width=16, encoder_depth=1, decoder_depth=1, heads=2)
    cond = told(2)
    assert network(**VARIANTS["sr3"]).prepared(cond) is cond
    assert vit.prepared(cond) is cond


def _reference_rrdb(p, x):
    """Three dense blocks of five convolutions, residuals times 0.2 inside and around."""
    out = x
    for block in range(3):
        features, h = [out], None
        for k in range(5):
            name = f"dense.{block}.convs.{k}"
            h = F.conv2d(torch.cat(features, 1), p[f"{name}.weight"], p[f"{name}.bias"], padding=1)
            features.append(torch.where(h > 0, h, 0.2 * h))
        out = out + 0.2 * h
    return x + 0.2 * out


def test_the_image_encoder_is_esrgans():
    block, x = randomised(RRDB(8, 4), by=0.3), normal(1, 2, 8, 6, 6)
    assert torch.allclose(block(x), _reference_rrdb(block.state_dict(), x), atol=1e-5)
    net = randomised(RRDBNet(3, 16, blocks=0, width=8))
    image = normal(2, 1, 3, 6, 6)
    first = net.first(image)
    expected = net.last(F.leaky_relu(net.late(first + net.trunk(first)), 0.2))
    assert torch.allclose(net(image), expected, atol=1e-6)
    dense = sum(9 * (64 + 32 * k) * out + out for k, out in enumerate([32, 32, 32, 32, 64]))
    rest = 9 * 64 * (3 + 64 + 64 + 128) + 3 * 64 + 128
    assert sum(p.numel() for p in RRDBNet(3, 128, blocks=2).parameters()) == 2 * 3 * dense + rest


# reading layers


def test_encode_reads_what_the_answer_is_made_of():
    net, cond = trained("improved")
    x, caught = normal(1, 2, 3, 8, 8), {}
    modules = [*net.down[0].layers, *net.down[1].layers, net.middle, *net.up[0].layers, *net.up[1].layers]
    for layer, module in zip(net.layers, modules, strict=True):
        module.register_forward_hook(lambda module, args, out, layer=layer: caught.update({layer: out}))
    net(x, level(3, 900), cond)
    answered = dict(caught)
    caught.clear()
    found = net.encode(x, level(3, 900), cond, layers=[1, 3])
    assert sorted(caught) == [1, 2, 3]  # it stopped there
    assert sorted(found) == [1, 3]
    for layer, tokens in net.encode(x, level(3, 900), cond).items():
        B, D, h, w = answered[layer].shape
        assert torch.equal(tokens, answered[layer].reshape(B, D, h * w).transpose(1, 2))
    assert found[1].shape == (2, 64, 16)
    assert found[net.encoder_layer].shape == (2, 16, 32)
    last = net.last(F.silu(net.norm(answered[7])))
    assert torch.equal(net(x, level(3, 900), cond), last)


# sizes that fit and sizes that do not


def test_images_need_not_be_square():
    shape = (3, 8, 16)
    net = randomised(network(in_shape=shape, out_shape=shape))
    assert [stage.layers[0].attention.__class__ is PixelAttention for stage in net.down] == [False, True]
    assert net(normal(1, 2, *shape), level(3, 900)).shape == (2, *shape)
    square = randomised(network())
    square.load_state_dict(net.state_dict())  # attention sits where the shorter side says: the same network
    x = normal(1, 2, 3, 8, 8)
    assert torch.equal(square(x, level(3, 900)), net(x, level(3, 900)))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"multipliers": (1, 1, 1, 1, 1)}, r"multipliers=\(1, 1, 1, 1, 1\) halve the input 4 times: 16 must divide"),
        ({"in_shape": (3, 8, 9), "out_shape": (3, 8, 9)}, "2 must divide its sides, 8 and 9"),
        ({"multipliers": ()}, "must have a number for each level"),
        ({"channels": 18}, "channels=18 must be a multiple of 4"),
        ({"out_shape": (3, 4, 4)}, "must be as large as the input, 8 x 8"),
        ({"attention": (16,)}, "attention=16 is the side of no feature map; there are 8, 4"),
        ({"heads": 3}, "heads=3 must divide the 32 channels"),
        ({"encoder": {"blocks": 1}}, "has no image to read"),
        ({"encoder": {"blocks": 1, "grwth": 4}, "cond_channels": 3}, r"encoder.grwth=4 is not a key.*growth"),
        ({"encoder": {"blocks": -1}, "cond_channels": 3}, "encoder.blocks=-1 must be at least 0"),
        ({"encoder": {}, "cond_channels": 3}, "encoder.blocks=None is missing"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        network(**settings)


def test_an_input_that_the_levels_do_not_divide_is_refused():
    with pytest.raises(ConfigError, match="2 must divide its sides, 7 and 8"):
        network()(normal(1, 1, 3, 7, 8), level(3))
