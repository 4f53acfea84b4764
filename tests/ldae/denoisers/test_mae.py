"""MAE: masking, loss, network (arXiv 2111.06377)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ldae.config.build import Parts
from ldae.core.errors import ConfigError
from ldae.core.types import Batch, BatchGenerator
from ldae.denoisers.mae import MaskedAutoencoder
from ldae.engine.flop import count_flop
from ldae.engine.optim import AdamW
from ldae.export.encoder import Encoder, Run
from ldae.export.fold import plain_vit
from ldae.nn.blocks import Block
from ldae.nn.masking import Masking, count_visible
from ldae.nn.patchify import patchify
from ldae.objectives.masked import Masked
from ldae.objectives.panels import MaskingPanel
from ldae.tasks.images import Images

SMALL = ("experiment=mae/cifar10_cpu", "denoiser.width=32", "denoiser.encoder_depth=2", "denoiser.decoder_depth=2")


def network(size=16, **settings):
    """Past its start, so that no parameter is 0: 16 patches of 4 x 4 pixels."""
    torch.manual_seed(0)
    sizes = {"width": 32, "encoder_depth": 3, "heads": 4, "decoder_width": 24, "decoder_depth": 2, "decoder_heads": 2}
    net = MaskedAutoencoder((3, size, size), **({"patch": 4} | sizes | settings))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return net


def images(count=6, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def batch_of(pixels):
    return Batch(pixels, torch.zeros(len(pixels), dtype=torch.long), torch.arange(len(pixels)))


def noise(B, N, seed=0):
    return torch.rand(B, N, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("N", [16, 64, 65, 196, 256])
def test_a_quarter_is_kept_and_the_rest_hidden(N):
    masking = Masking.from_noise(noise(5, N), 0.75)
    assert masking.num_visible == N // 4
    assert masking.mask.sum(1).tolist() == [N - N // 4] * 5
    assert not torch.equal(masking.mask[0], masking.mask[1])


def test_the_patches_of_lowest_noise_are_seen():
    drawn = noise(4, 20)
    masking = Masking.from_noise(drawn, 0.75)
    for row, hidden in zip(drawn, masking.mask, strict=True):
        assert row[~hidden].max() < row[hidden].min()


def test_every_patch_is_hidden_as_often_as_any_other():
    hidden = Masking.from_noise(BatchGenerator([1]).uniform((20_000, 16)), 0.75).mask.float().mean(0)
    assert (hidden - 0.75).abs().max() < 0.015  # five standard deviations


def test_restoring_undoes_the_order():
    tokens, masking = torch.randn(4, 20, 3), Masking.from_noise(noise(4, 20), 0.6)
    whole = Masking(masking.order, 20).gather_visible(tokens)  # all of them, in the order
    assert not torch.equal(whole, tokens)
    assert torch.equal(masking.restore_order(whole), tokens)
    assert torch.equal(masking.gather_visible(tokens), whole[:, : masking.num_visible])
    for image in range(4):
        assert set(masking.order[image, : masking.num_visible].tolist()) == set(
            (~masking.mask[image]).nonzero().flatten().tolist()
        )


def test_uniform_draws_are_uniform_and_those_of_each_slice():
    whole, halves = BatchGenerator([1, 2]).uniform((100, 500)), [BatchGenerator([s]).uniform((50, 500)) for s in (1, 2)]
    assert torch.equal(whole, torch.cat(halves))
    assert 0 <= whole.min() < whole.max() < 1
    assert whole.mean().item() == pytest.approx(0.5, abs=0.007)
    assert whole.var().item() == pytest.approx(1 / 12, abs=0.002)


def test_a_block_is_torchs_pre_norm_layer_and_timms_block():
    from timm.models.vision_transformer import Block as Timm

    torch.manual_seed(0)
    block, x = Block(32, 4), torch.randn(2, 9, 32)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    theirs = Timm(32, 4, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    theirs.load_state_dict(block.state_dict())
    assert torch.allclose(block(x), theirs(x), atol=1e-5)
    assert torch.allclose(block(x), _torchs_layer(block, 32, 4)(x), atol=1e-5)


def _torchs_layer(block, width, heads):
    """torch's own pre-norm encoder layer with a block's weights."""
    hidden = block.mlp.fc1.out_features
    layer = nn.TransformerEncoderLayer(width, heads, hidden, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
    named = {
        "self_attn.in_proj": block.attn.qkv,
        "self_attn.out_proj.": block.attn.proj,
        "linear1.": block.mlp.fc1,
        "linear2.": block.mlp.fc2,
        "norm1.": block.norm1,
        "norm2.": block.norm2,
    }
    weights = {}
    for name, module in named.items():
        join = "_" if name.endswith("proj") else ""
        weights |= {f"{name}{join}weight": module.weight, f"{name}{join}bias": module.bias}
    layer.load_state_dict(weights)
    return layer.eval()


def _reference_positions(width, h, w):
    """Sine and cosine of column, then of row, at geometric wavelengths (App. A.1 of arXiv 2111.06377)."""
    rows = []
    for y in range(h):
        for x in range(w):
            halves = [torch.tensor([p / 10000 ** (4 * k / width) for k in range(width // 4)]) for p in (x, y)]
            rows.append(torch.cat([f(angle) for angle in halves for f in (torch.sin, torch.cos)]))
    return torch.stack(rows)


def _reference_mae(net, x, drawn, kept, norm_pix):
    """The masked autoencoder image by image and patch by patch, with torch's own layers; mean loss and answers."""
    errors, answers, p = [], [], net.patch
    h, w = x.shape[2] // p, x.shape[3] // p
    encoder = [_torchs_layer(b, 32, 4) for b in net.blocks]
    decoder = [_torchs_layer(b, 24, 2) for b in net.decoder_blocks]
    for picture, row in zip(x, drawn, strict=True):
        cut = [picture[:, p * (n // w) :, p * (n % w) :][:, :p, :p] for n in range(h * w)]
        patches = torch.stack([c.permute(1, 2, 0).flatten() for c in cut])  # (N, p q c)
        seen = sorted(range(h * w), key=lambda n, row=row: row[n].item())[:kept]
        tokens = (patches @ net.embed.weight.T + net.embed.bias + _reference_positions(32, h, w))[seen]
        z = torch.cat([net.class_token[0], tokens])[None]
        for layer in encoder:
            z = layer(z)
        z = F.linear(F.layer_norm(z, (32,), net.norm.weight, net.norm.bias, 1e-6)[0], *net.to_decoder.parameters())
        grid = [z[1 + seen.index(n)] if n in seen else net.mask_token[0, 0] for n in range(h * w)]
        z = torch.stack([z[0], *(g + q for g, q in zip(grid, _reference_positions(24, h, w), strict=True))])[None]
        for layer in decoder:
            z = layer(z)
        z = F.layer_norm(z, (24,), net.decoder_norm.weight, net.decoder_norm.bias, 1e-6)[0, 1:]
        answer = F.linear(z, *net.head.parameters())
        target = patches
        if norm_pix:
            n = patches.shape[1]
            centred = patches - patches.sum(1, keepdim=True) / n
            target = centred / ((centred**2).sum(1, keepdim=True) / (n - 1) + 1e-6) ** 0.5
        errors += [((answer[n] - target[n]) ** 2).mean() for n in range(h * w) if n not in seen]
        answers.append(answer)
    return torch.stack(errors).mean(), torch.stack(answers)


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("ratio", [0.75, 0.5])
@torch.no_grad()
def test_answers_and_loss_are_the_papers_written_out(norm_pix, ratio):
    net, pixels = network(), images()
    drawn = BatchGenerator([5]).uniform((6, 16))
    expected, answers = _reference_mae(net, 2 * pixels - 1, drawn, round(16 * (1 - ratio)), norm_pix)
    loss, _ = Masked(Images(), net, ratio, norm_pix)(batch_of(pixels), BatchGenerator([5]))
    assert torch.allclose(net(net.patches(2 * pixels - 1), Masking.from_noise(drawn, ratio)), answers, atol=1e-4)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def changed(x, which):
    """Images (B, 3, 16, 16) with other pixels in the patches (B, 16) that `which` names."""
    pixels = which.reshape(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return torch.where(pixels, torch.flip(x, [0]), x)


@torch.no_grad()
def test_the_network_sees_the_visible_patches_alone():
    net, x, masking = network(), images(), Masking.from_noise(noise(6, 16), 0.75)
    entered = []
    net.to_decoder.register_forward_hook(lambda module, given, out: entered.append(given[0]))
    out = net(net.patches(x), masking)
    assert torch.equal(net(net.patches(changed(x, masking.mask)), masking), out)
    assert not torch.allclose(net(net.patches(changed(x, ~masking.mask)), masking), out, atol=1e-2)
    assert torch.equal(entered[0], entered[1])  # the encoder's output, before any mask token
    assert entered[0].shape == (6, 1 + 4, 32)


@torch.no_grad()
def test_answers_on_visible_patches_do_not_count():
    net, pixels = network(), images()
    objective = Masked(Images(), net)
    loss, metrics = objective(batch_of(pixels), BatchGenerator([5]))
    hidden = objective.masking(6, BatchGenerator([5])).mask
    for where, same in ((~hidden, True), (hidden, False)):
        hook = net.register_forward_hook(lambda m, given, out, where=where: out + 100 * where[..., None])
        other, others = objective(batch_of(pixels), BatchGenerator([5]))
        hook.remove()
        assert (other.item() == loss.item()) is same
        assert (others["error_visible"][0].item() == metrics["error_visible"][0].item()) is not same
    assert metrics["error_visible"][1].item() == 6 * 4


def test_a_training_step_cuts_images_into_patches_once(monkeypatch):
    calls = []
    monkeypatch.setattr("ldae.denoisers.mae.patchify", lambda x, p: calls.append(x) or patchify(x, p))
    Masked(Images(), network())(batch_of(images()), BatchGenerator([0]))
    assert len(calls) == 1


def test_standardised_patches_have_mean_0_and_unbiased_deviation_1():
    objective, pixels = Masked(Images(), network()), images()
    pixels[0] = 0.3  # flat
    target = objective.standardise(objective.network.patches(2 * pixels - 1))
    assert target[1:].mean(-1).abs().max() < 1e-5
    assert (target[1:].std(-1, correction=1) - 1).abs().max() < 1e-3
    assert target[0].abs().max() < 1e-3
    patches = objective.network.patches(2 * pixels - 1)
    assert torch.allclose(objective.to_pixels(target, patches), patches, atol=1e-5)
    wave = (
        torch.where(torch.arange(48) % 2 == 0, 1e-3, -1e-3) * (47 / 48) ** 0.5
    )  # of variance 1e-6, as much as is added
    faint = objective.standardise((0.3 + wave).expand(1, 1, 48))
    assert faint.std(correction=1).item() == pytest.approx(0.5**0.5, rel=1e-3)
    plain = Masked(Images(), network(), norm_pix=False)
    assert torch.equal(plain.standardise(patches), patches)


@torch.no_grad()
def test_answering_nothing_loses_n_less_one_over_n():
    net = network()
    for parameter in net.head.parameters():
        parameter.zero_()
    loss, _ = Masked(Images(), net)(batch_of(images()), BatchGenerator([0]))
    assert loss.item() == pytest.approx(47 / 48, rel=1e-4)  # n = 3 p^2 = 48


@torch.no_grad()
def test_common_brightness_and_contrast_do_not_change_the_target():
    objective, pixels = Masked(Images(), network()), images()
    a, b = (objective.standardise(objective.network.patches(x)) for x in (pixels, 0.2 + 0.5 * pixels))
    assert torch.allclose(a, b, atol=1e-3)


def test_gradients_reach_every_parameter_and_no_position():
    net = network()
    Masked(Images(), net)(batch_of(images()), BatchGenerator([0]))[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert not [name for name in (*net.state_dict(), *dict(net.named_parameters())) if "positions" in name]
    assert not net.positions.requires_grad
    assert not net.decoder_positions.requires_grad
    decayed, free = AdamW(1e-3, weight_decay=0.05).build(net).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0)
    vectors = [p for n, p in net.named_parameters() if "norm" in n or n.endswith("bias")]
    assert {id(p) for p in free["params"]} == {id(p) for p in vectors}


def test_the_class_token_has_no_position_and_token_n_is_row_n_over_w():
    net, x = network(), torch.zeros(1, 3, 16, 16)
    assert torch.equal(net.positions[0], torch.zeros(32))
    assert torch.allclose(net.positions[1:], _reference_positions(32, 4, 4), atol=1e-6)
    assert torch.allclose(net.decoder_positions[1:], _reference_positions(24, 4, 4), atol=1e-6)
    x[0, :, 8:12, 4:8] = 1  # row 2, column 1 of a 4 x 4 grid
    differs = (net.embed_patches(net.patches(x)) - net.embed_patches(net.patches(torch.zeros_like(x)))).abs().sum(-1)[0]
    assert differs.nonzero().flatten().tolist() == [2 * 4 + 1]


def test_it_starts_as_the_paper_says():
    torch.manual_seed(0)
    net = MaskedAutoencoder((3, 32, 32), 4, 512, 1, 4, 512, 1, 4)
    for linear in (m for m in net.modules() if isinstance(m, nn.Linear)):
        bound = (6 / sum(linear.weight.shape)) ** 0.5  # Xavier-uniform
        assert 0.98 * bound < linear.weight.abs().max() <= bound
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert not linear.bias.any()
    for token in (net.class_token, net.mask_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.15)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.undo_zero_init()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    layers = MaskedAutoencoder((3, 16, 16), 4, 32, 3, 4, 24, 2, 2).encode(images())
    assert not torch.allclose(layers[1], layers[2], atol=1e-2)  # no gate to open: random blocks show


@pytest.mark.parametrize(("width", "depth", "heads", "known"), [(768, 12, 12, 85_798_656), (1024, 24, 16, 303_301_632)])
def test_the_paper_sizes_have_the_papers_encoders(width, depth, heads, known):
    """`known`: ViT-B/16 and ViT-L/16 at 224 px without head, whose 197 positions are learned; here they are fixed."""
    with torch.device("meta"):
        net = MaskedAutoencoder((3, 224, 224), 16, width, depth, heads, 512, 8, 16)
    counts = {name: p.numel() for name, p in net.named_parameters()}
    parts = ("embed", "class_token", "blocks", "norm")
    encoder = sum(n for name, n in counts.items() if name.split(".")[0] in parts)
    assert encoder + 197 * width == known
    block = lambda D: 3 * D * (D + 1) + D * (D + 1) + 4 * D * (D + 1) + D * (4 * D + 1) + 4 * D  # noqa: E731
    assert encoder == depth * block(width) + (768 + 1) * width + width + 2 * width
    decoder = (width + 1) * 512 + 512 + 8 * block(512) + 2 * 512 + (512 + 1) * 768
    assert sum(counts.values()) == encoder + decoder


@torch.no_grad()
def test_hiding_three_quarters_costs_a_quarter_and_attention_a_sixteenth():
    """Up to the class token, which is always there."""
    net, x, N = network(size=64), images(2, 64), 256
    flop = {}
    for name, kept in (("full", N), ("masked", count_visible(N, 0.75))):
        tokens = Masking(torch.arange(N).expand(2, N), kept).gather_visible(net.embed_patches(net.patches(x)))
        flop[name] = count_flop(partial(net._encode, tokens, net.layers))
    linear, matrices = (flop["masked"][op] / flop["full"][op] for op in (torch.ops.aten.addmm, torch.ops.aten.bmm))
    assert linear == pytest.approx(65 / 257)
    assert matrices == pytest.approx((65 / 257) ** 2)


@torch.no_grad()
def test_reading_gives_every_patch_of_the_whole_image():
    net, x = network(), images()
    features = net.encode(x)
    assert list(features) == [1, 2, 3]
    assert all(tokens.shape == (6, 16, 32) for tokens in features.values())
    z = torch.cat([net.class_token.expand(6, 1, 32), net.embed_patches(net.patches(x))], dim=1)
    for layer, block in enumerate(net.blocks, start=1):
        z = block(z)
        read = F.layer_norm(z, (32,), net.norm.weight, net.norm.bias, 1e-6) if layer == 3 else z
        assert torch.allclose(features[layer], read[:, 1:], atol=1e-5)
    calls = []
    net.blocks[2].register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(net.encode(x, [2])[2], features[2])
    assert not calls


def test_the_encoder_has_one_level_and_no_noise():
    objective = Masked(Images(), network()).eval()
    encoder = Encoder(objective)
    assert (encoder.t, encoder.layer) == (0, 3)
    pixels = images()
    assert torch.equal(encoder(pixels), objective.network.encode(2 * pixels - 1)[3].mean(1))
    tokens = encoder.tokens(pixels, [2, 3], class_token=True)
    assert torch.equal(tokens[3][:, 1:], encoder.tokens(pixels, [3])[3])
    read = objective.network._encode(objective.network.embed_patches(objective.network.patches(2 * pixels - 1)), [2, 3])
    assert all(torch.equal(tokens[layer][:, 0], read[layer][:, 0]) for layer in (2, 3))
    with pytest.raises(ConfigError, match=r"t=10 must be in 0\.\.0"):
        Encoder(objective, t=10)
    with pytest.raises(ConfigError, match="Masked has none; use inputs="):
        Encoder(objective, noised=True)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_encoder_is_a_plain_vit_of_timm_with_a_class_token(layer):
    encoder, pixels = Encoder(Masked(Images(), network()).eval(), layer=layer), images()
    with torch.no_grad():
        assert (plain_vit(encoder)(2 * pixels - 1) - encoder(pixels)).abs().max() < 1e-4


def test_an_encoder_is_called_after_its_experiment():
    objective = Masked(Images(), network())
    names = {
        "ldae/digits": "l-DAE",
        "mae/cifar10_cpu": "MAE",
        "dae_pixel/cifar10": "pixel DAE",
        "deconstruct/07_patch_pca": "07_patch_pca",
        None: "Masked",
    }
    for experiment, name in names.items():
        assert Run(objective, None, {"experiment": experiment}).name == name


def test_the_panel_shows_what_is_hidden_and_measures_it_alone():
    net, pixels = network(), images()
    objective = Masked(Images(), net)
    panel = MaskingPanel(objective, batch_of(pixels), every=1, shown=2)
    shown, filled, hidden = objective.fill_masked(pixels, BatchGenerator([4]))
    assert (shown[hidden] == 0).all()
    for x in (shown, filled):
        assert torch.allclose(x[~hidden], (2 * pixels - 1)[~hidden], atol=1e-6)
    assert hidden.float().mean() == 0.75
    scalars, pictures = panel(0)
    picture = pictures["original_masked_filled"]
    heads = picture.shape[1] - (2 * 66 - 2)  # above the columns
    assert 15 <= heads <= 41
    assert picture.shape[2] == 3 * 66 - 2
    assert torch.allclose(picture[:, heads : heads + 64 : 4, :64:4], pixels[0], atol=1e-6)
    truth = objective.standardise(objective.network.patches(2 * pixels - 1))
    net.register_forward_hook(lambda *_: truth)
    assert scalars["psnr_hidden"] < 30 < 100 < panel(0)[0]["psnr_hidden"]


def test_what_does_not_go_together_is_refused(config):
    for argv, message in (
        (("objective=masked",), "denoiser='ViTDenoiser' cannot leave patches out"),
        (("denoiser=mae_128x4",), "denoiser='MaskedAutoencoder' takes no noise level"),
        ((*SMALL, "objective.ratio=0.99"), "objective.ratio=0.99 must leave some of 64 patches"),
        ((*SMALL, "objective.ratio=0"), "objective.ratio=0.0 must leave some of 64 patches"),
        ((*SMALL, "denoiser.heads=3"), "denoiser.width=32 must be a multiple of 4 and of denoiser.heads=3"),
        ((*SMALL, "denoiser.decoder_heads=7"), "denoiser.decoder_width=128 must be .* denoiser.decoder_heads=7"),
        ((*SMALL, "denoiser.patch=5"), "denoiser.patch=5 does not divide the image, 32 x 32"),
    ):
        with pytest.raises(ConfigError, match=message):
            _ = Parts(config("pretrain", *argv)).objective


def test_it_learns_the_masked_patches(config):
    """Images of two halves of one colour each: the masked patches follow from the visible ones."""
    torch.manual_seed(0)
    objective = Parts(config("pretrain", *SMALL, "data=digits", "objective.norm_pix=false")).objective
    colours = torch.rand(64, 3, 1, 2, generator=torch.Generator().manual_seed(0))
    batch = batch_of(colours.repeat_interleave(8, 2).repeat_interleave(4, 3))
    optimizer = torch.optim.AdamW(objective.network.parameters(), lr=3e-3)
    with torch.no_grad():
        guess = (2 * batch.images - 1).var().item()  # the loss of one colour for all
    for step in range(150):
        optimizer.zero_grad()
        loss, _ = objective(batch, BatchGenerator([step]))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * guess
