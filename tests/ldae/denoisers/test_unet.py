"""The U-Net: sizes, initialisation, conditioning on noise, layers (arXiv 2006.11239, 2104.07636)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from unets import VARIANTS, conditions_of, level, network, normal, randomised, trained

from ldae.app.compose import CONFIGS
from ldae.config.build import Parts
from ldae.config.schema import construct
from ldae.core.errors import ConfigError
from ldae.core.types import Batch, BatchGenerator, Cond
from ldae.denoisers.unet import UNet
from ldae.diffusion.schedules import Cosine, DDPMLinear
from ldae.nn.embeddings import sinusoid, sinusoid_ddpm
from ldae.nn.rrdb import RRDBNet
from ldae.nn.unet_blocks import PixelAttention
from ldae.tasks.images import Images

PIXELS = ("data=cifar10", "tokenizer=pixel", "tokenizer.patch=1", "input=latent", "output=latent")
SIMPLE = ("target=eps", "schedule=ddpm_linear", "weight=one", "loss=l2")
# (H, W), channels of x_t, of the answer and of the conditioning image -> parameters
SIZES = {
    "unet_cifar10": (32, 3, 3, 0, 35_746_307),
    "unet_256": (256, 3, 3, 0, 113_673_219),
    "unet_iddpm": (32, 3, 6, 0, 52_546_438),
    "unet_32": (32, 3, 3, 0, 1_624_323),
    "unet_64": (64, 3, 3, 0, 4_314_307),
    "unet_sr3_32": (32, 3, 3, 3, 1_923_619),
    "unet_sr3_128": (128, 3, 3, 3, 574_771_203),
    "unet_segdiff_64": (64, 1, 1, 3, 3_201_201),
    "unet_segdiff_256": (256, 1, 1, 3, 164_154_753),
}


def parameters(config, name, **given):
    side, ins, outs, cond, _ = SIZES[name]
    spec = {k: v for k, v in config("pretrain", f"denoiser={name}")["denoiser"].items() if k != "part"}
    encoder = spec.pop("encoder", None)
    shapes = {"in_shape": (ins, side, side), "out_shape": (outs, side, side), "cond_channels": cond}
    with torch.device("meta"):
        if encoder:
            given["encoder"] = construct(RRDBNet, encoder, {"inputs": cond, "out": spec["channels"]})
        net = construct(UNet, spec, {**shapes, "schedule": DDPMLinear(), "classes": 0, **given})
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", SIZES)
def test_every_size_has_exactly_its_parameters(config, name):
    """DDPM's and improved DDPM's as in their code; the YAML states the number of each."""
    count = SIZES[name][-1]
    assert parameters(config, name) == count
    assert f"{count:,} parameters" in (CONFIGS / "denoiser" / f"{name}.yaml").read_text().replace("\n# ", " ")


def test_the_system_builds_ddpms_network_from_the_config_alone(config):
    parts = Parts(config("pretrain", *PIXELS, *SIMPLE, "denoiser=unet_cifar10", "objective=learned_variance"))
    with torch.device("meta"):
        net = parts.denoiser
    assert (net.first.in_channels, net.last.out_channels) == (3, 6)
    assert sum(p.numel() for p in net.parameters()) == 35_746_307 + 3 * (9 * 128 + 1)


class Upscaled(Images):
    image_channels = 3


@pytest.mark.parametrize(("name", "first"), [("unet_sr3_32", 6), ("unet_segdiff_64", 3)])
def test_the_system_tells_the_network_of_the_tasks_image(config, name, first):
    parts = Parts(config("pretrain", *PIXELS, *SIMPLE, f"denoiser={name}"))
    parts.task = Upscaled()
    net = parts.denoiser
    assert (net.first.in_channels, net.cond_channels) == (first, 3)
    assert (net.encoder is None) == (first == 6)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_new_network_answers_zero_and_its_branches_are_closed(name):
    net, x = network(**VARIANTS[name]), normal(1, 2, 3, 8, 8)
    assert torch.equal(net(x, level(3, 900), conditions_of(2)), torch.zeros(2, 3, 8, 8))
    tokens = net.encode(x, level(3, 900), conditions_of(2))
    other = net.encode(x, level(0, 5, gamma=0.9), conditions_of(2))
    assert all(torch.equal(tokens[k], other[k]) for k in net.layers)  # nothing of the condition comes through
    assert net.layers == (1, 2, 3, 4, 5, 6, 7)
    assert net.encoder_layer == 3


def test_the_loss_at_the_start_is_one(config):
    """L_simple, 64 images: the output is 0 and the mean square of the noise is 1."""
    torch.manual_seed(0)
    parts = Parts(config("pretrain", *PIXELS, *SIMPLE, "denoiser=unet_32"))
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    parts.tokenizer.fit([2 * images - 1])
    with torch.no_grad():
        loss, _ = parts.objective(Batch(images, torch.zeros(64).long(), torch.arange(64)), BatchGenerator([7]))
    assert loss.item() == pytest.approx(1, abs=0.02)


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
def test_undo_zero_init_makes_the_output_depend_on_the_condition_and_is_deterministic(name):
    nets = [network(**VARIANTS[name]) for _ in range(2)]
    torch.manual_seed(1)
    for net in nets:
        net.undo_zero_init()
    x, layer = normal(1, 2, 3, 8, 8), nets[0].encoder_layer
    first, second = (net.encode(x, level(3, 900), conditions_of(2), [layer])[layer] for net in nets)
    assert torch.equal(first, second)
    other = nets[0].encode(x, level(500, 900, gamma=0.9), conditions_of(2), [layer])[layer]
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


def test_conditioned_on_the_index_it_depends_on_nothing_else():
    net, x = randomised(network()), normal(1, 2, 3, 8, 8)
    assert torch.equal(net(x, level(3, 900)), net(x, level(3, 900, gamma=0.1, sigma=2.0)))
    assert not torch.allclose(net(x, level(3, 900)), net(x, level(4, 900)), atol=1e-4)


def test_a_scaled_step_of_4000_is_a_step_of_1000():
    long, short = (randomised(network(schedule=s, **VARIANTS["improved"])) for s in (Cosine(T=4000), Cosine(T=1000)))
    x = normal(1, 2, 3, 8, 8)
    assert torch.equal(long(x, level(400, 3600)), short(x, level(100, 900)))
    assert torch.equal(long.level(level(2))[0], short.level(replace(level(0), t=torch.tensor([0.5])))[0])


def test_told_gamma_it_is_a_function_of_gamma_alone():
    """The same level reached by two schedules of different lengths."""
    net, cond = trained("sr3")
    x, gamma2 = normal(1, 2, 3, 8, 8), 0.37
    two_paths = [level(*t, gamma=math.sqrt(gamma2), sigma=s) for t, s in (((3, 3), 0.8), ((999, 40), 0.2))]
    first, second = (net(x, path, cond) for path in two_paths)
    assert torch.equal(first, second)
    assert not torch.allclose(first, net(x, level(3, 3, gamma=math.sqrt(0.38)), cond), atol=1e-4)


def test_nearly_clean_levels_are_told_apart():
    """gamma^2 = 0.999999 and 0.9999, and both from a clean input."""
    net = network(channels=32, **VARIANTS["sr3"])
    codes = [net.level(level(0, gamma=math.sqrt(g)))[0] for g in (1.0, 0.999999, 0.9999, 0.99)]
    waves = [sinusoid(net.level.scalar(level(0, gamma=math.sqrt(g))), 32)[0] for g in (0.999999, 0.9999)]
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


def test_encode_returns_the_maps_that_the_output_is_computed_from():
    net, cond = trained("improved")
    x, caught = normal(1, 2, 3, 8, 8), {}
    modules = [*net.down[0].layers, *net.down[1].layers, net.middle, *net.up[0].layers, *net.up[1].layers]
    for layer, module in zip(net.layers, modules, strict=True):
        module.register_forward_hook(lambda module, args, out, layer=layer: caught.update({layer: out}))
    net(x, level(3, 900), cond)
    answered = dict(caught)
    caught.clear()
    features = net.encode(x, level(3, 900), cond, layers=[1, 3])
    assert sorted(caught) == [1, 2, 3]  # it stopped there
    assert sorted(features) == [1, 3]
    for layer, tokens in net.encode(x, level(3, 900), cond).items():
        B, D, h, w = answered[layer].shape
        assert torch.equal(tokens, answered[layer].reshape(B, D, h * w).transpose(1, 2))
    assert features[1].shape == (2, 64, 16)
    assert features[net.encoder_layer].shape == (2, 16, 32)
    last = net.last(F.silu(net.norm(answered[7])))
    assert torch.equal(net(x, level(3, 900), cond), last)


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
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        network(**settings)


def test_an_input_that_the_levels_do_not_divide_is_refused():
    with pytest.raises(ConfigError, match="2 must divide its sides, 7 and 8"):
        network()(normal(1, 1, 3, 7, 8), level(3))
