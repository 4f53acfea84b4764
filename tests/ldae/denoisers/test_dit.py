"""DiT: sizes, conditioning on level and class, label dropout (arXiv 2212.09748)."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from ldae.config.build import Parts
from ldae.core.errors import ConfigError
from ldae.core.types import Batch, BatchGenerator, Cond, NoiseLevel
from ldae.denoisers.vit import ViTDenoiser
from ldae.export.encoder import Encoder
from ldae.export.fold import plain_vit
from ldae.nn.blocks import ConditionedBlock
from ldae.nn.embeddings import sinusoid
from ldae.tasks.images import Images, Labelled

LATENT = ("input=latent", "output=latent", "target=eps", "schedule=ddpm_linear", "weight=one", "loss=l2")
SIZES = {"s": 32_865_056, "b": 130_315_808, "l": 457_840_672, "xl": 674_834_720}


def level(*t):
    t = torch.tensor(t)
    return NoiseLevel(t, torch.ones(len(t)), torch.zeros(len(t)))


def network(**settings):
    torch.manual_seed(0)
    arguments = {"in_shape": (4, 8, 8), "out_shape": (8, 8, 8), "grid": (8, 8), "width": 32, "heads": 4, "patch": 2}
    dits = {"encoder_depth": 1, "decoder_depth": 1, "cond_ratio": 1.0, "cond_layers": 2, "gelu": "tanh", "classes": 5}
    return ViTDenoiser(**(arguments | dits | settings))


def randomised(net, by=0.1):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(by * torch.randn(p.shape, generator=generator))
    return net


@pytest.mark.parametrize("size", SIZES)
def test_the_papers_sizes_have_exactly_their_parameters(config, size):
    """On 32 x 32 x 4 latents in patches of 2, 1000 classes, variance learned; no image and no memory needed."""
    parts = Parts(config("pretrain", "experiment=dit/imagenet_xl2", f"denoiser=dit_{size}"))
    with torch.device("meta"):
        net = parts.denoiser
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == SIZES[size]
    assert net.grid == (16, 16)


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_made_in_every_patch(config, size, patch):
    parts = Parts(config("pretrain", "experiment=dit/imagenet_xl2", f"denoiser=dit_{size}", f"denoiser.patch={patch}"))
    with torch.device("meta"):
        net = parts.denoiser
    assert net.positions.shape[0] == (32 // patch) ** 2
    assert net.head.linear.out_features == patch**2 * 8
    assert net.embed.in_features == patch**2 * 4
    assert net.encoder_layer * 2 == len(net.layers)


def test_a_new_network_answers_zero_whatever_the_class():
    net, x = network(), torch.randn(3, 4, 8, 8)
    assert torch.equal(net(x, level(3, 900, 1), Cond(label=torch.tensor([0, 4, 5]))), torch.zeros(3, 8, 8, 8))
    tokens = net.encode(x, level(3, 900, 1), Cond(label=torch.tensor([0, 4, 5])))
    assert torch.equal(tokens[1], tokens[2])


def test_parameters_wake_in_order_and_the_condition_last():
    net, x, y, moved = network(), torch.randn(4, 4, 8, 8), torch.randn(4, 8, 8, 8), []
    for _ in range(3):
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        ((net(x, level(1, 2, 3, 4), Cond(label=torch.tensor([0, 1, 2, 3]))) - y) ** 2).mean().backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= p.grad if p.grad is not None else 0
                p.grad = None
        moved.append({name for name, p in net.named_parameters() if not torch.equal(p, before[name])})
    assert moved[0] == {"head.linear.weight", "head.linear.bias"}
    assert {"embed.weight", "head.ada.linear.weight", "blocks.0.ada.linear.weight"} <= moved[1]
    late = {"labels.table.weight", "level.linear.weight", "level.second.weight", "blocks.0.mlp.fc1.weight"}
    assert not late & moved[1]
    assert late <= moved[2]


def test_the_conditioning_weights_start_as_dits():
    net = network(width=512, heads=8)
    for weight in (net.level.linear.weight, net.level.second.weight, net.labels.table.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert net.level.second.bias.abs().max() == 0
    bound = math.sqrt(6 / (512 + 16))  # Xavier, of the patch embedding: 2 x 2 x 4 numbers
    assert bound * 0.98 < net.embed.weight.abs().max() <= bound


def test_the_condition_is_the_levels_vector_plus_the_classes():
    net, t, y = randomised(network()), level(0, 7, 999), torch.tensor([2, 5, 0])
    hidden = F.silu(sinusoid(t.t, 256) @ net.level.linear.weight.T + net.level.linear.bias)
    expected = hidden @ net.level.second.weight.T + net.level.second.bias + net.labels.table.weight[y]
    assert torch.allclose(net.embed_condition(t, Cond(label=y)), expected, atol=1e-5)


def test_no_label_is_the_null_row():
    net, x = randomised(network()), torch.randn(2, 4, 8, 8)
    null = net(x, level(3, 900), Cond(label=torch.tensor([5, 5])))
    for cond in (None, Cond()):
        assert torch.equal(net(x, level(3, 900), cond), null)
    assert not torch.allclose(net(x, level(3, 900), Cond(label=torch.tensor([5, 1])))[1], null[1], atol=1e-3)
    assert torch.equal(net.encode(x, level(3, 900), layers=[2])[2], net.encode(x, level(3, 900), Cond())[2])


def test_a_network_without_classes_is_the_one_it_was():
    """The names in checkpoints from before labels, and no more."""
    names = set(network(classes=0, cond_layers=1, cond_ratio=0.25).state_dict())
    block = [
        f"{n}.{k}" for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "ada.linear") for k in ("weight", "bias")
    ]
    rest = [f"{n}.{k}" for n in ("embed", "level.linear", "head.ada.linear", "head.linear") for k in ("weight", "bias")]
    assert names == {*rest, *(f"blocks.{i}.{n}" for i in (0, 1) for n in block)}


def test_the_feed_forward_has_the_tanh_gelu():
    torch.manual_seed(0)
    exact, tanh = ConditionedBlock(32, 4, 32), ConditionedBlock(32, 4, 32, gelu="tanh")
    tanh.load_state_dict(exact.state_dict())
    x = 3 * torch.randn(2, 9, 32)
    hidden = x @ tanh.mlp.fc1.weight.T + tanh.mlp.fc1.bias
    approximate = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    assert torch.allclose(tanh.mlp(x), approximate @ tanh.mlp.fc2.weight.T + tanh.mlp.fc2.bias, atol=1e-5)
    assert (tanh.mlp(x) - exact.mlp(x)).abs().max() > 1e-5


def _reference_ddpm_sinusoid(t, width):
    """DDPM's code of t: sines first, the last frequency 1e-4 (half - 1 in the denominator)."""
    half = width // 2
    omega = torch.exp(-math.log(10000) * torch.arange(half) / (half - 1))
    angle = t[:, None] * omega
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def test_the_code_of_t_is_nearly_ddpms_and_not_equal():
    t = torch.tensor([0, 1, 7, 400])
    cos, sin = sinusoid(t, 256).chunk(2, dim=1)
    ddpm_sin, ddpm_cos = _reference_ddpm_sinusoid(t, 256).chunk(2, dim=1)
    assert torch.equal(cos[0], ddpm_cos[0])  # t = 0
    assert torch.allclose(sin[:, 0], ddpm_sin[:, 0])  # omega = 1
    assert (sin[1:3] - ddpm_sin[1:3]).abs().max() < 0.2
    assert not torch.allclose(sin, ddpm_sin, atol=0.01)


def test_a_patch_of_the_latent_is_the_grid_of_its_tokens():
    by_patch, by_grid = randomised(network(patch=2)), randomised(network(patch=None, grid=(4, 4)))
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(by_patch(x, level(3, 9)), by_grid(x, level(3, 9)))
    for patch in (3, 16):
        with pytest.raises(ConfigError, match=rf"patch={patch} must divide the network's input, 8 x 8"):
            network(patch=patch)


def test_labels_are_withheld_at_their_rate_and_replaced_by_the_null_row():
    task, label = Labelled(classes=10, dropout=0.1), torch.arange(100_000) % 10
    labels = task.augment_cond(Cond(label=label), BatchGenerator([3])).label
    withheld = labels == 10
    assert withheld.float().mean().item() == pytest.approx(0.1, abs=0.005)
    assert torch.equal(labels[~withheld], label[~withheld])
    assert torch.bincount(label[withheld]).float().std() < 60  # no class in particular
    assert torch.equal(Labelled(10, dropout=0.0).augment_cond(Cond(label=label), BatchGenerator([3])).label, label)
    assert (Labelled(10, dropout=1.0).augment_cond(Cond(label=label), BatchGenerator([3])).label == 10).all()


def test_which_labels_are_withheld_does_not_depend_on_who_works_on_them():
    task, label = Labelled(classes=10, dropout=0.5), torch.arange(64) % 10
    whole = task.augment_cond(Cond(label=label), BatchGenerator([5, 6, 7, 8])).label
    halves = [
        task.augment_cond(Cond(label=half), BatchGenerator(s)).label
        for half, s in zip(label.chunk(2), ([5, 6], [7, 8]), strict=True)
    ]
    assert torch.equal(whole, torch.cat(halves))


def test_unlabelled_tasks_tell_nothing():
    batch = Batch(torch.rand(2, 3, 8, 8), torch.tensor([1, 2]), torch.arange(2))
    assert Images()(batch)[1] == Cond()
    assert Images.classes == 0
    x0, cond = Labelled(10)(batch)
    assert torch.equal(x0, 2 * batch.images - 1)
    assert torch.equal(cond.label, batch.labels)


def learner(config, *argv):
    """Parts with a small network on 64 images, and the inputs and conditions of each of its calls."""
    torch.manual_seed(0)
    parts = Parts(config("pretrain", *LATENT, *argv))
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    parts.tokenizer.fit([2 * images - 1])
    calls = []
    parts.denoiser.register_forward_pre_hook(lambda _, given: calls.append(given))
    return parts, Batch(images, torch.arange(64) % 10, torch.arange(64)), calls


def test_labels_are_withheld_in_training_and_never_in_evaluation(config):
    parts, batch, calls = learner(config, "task=labelled", "task.dropout=0.5")
    objective = parts.objective
    objective(batch, BatchGenerator([7]))
    objective.eval()
    objective(batch, BatchGenerator([7]))
    objective.train()
    parts.denoiser.eval()  # as the engine does for an evaluation
    objective(batch, BatchGenerator([7]))
    in_training, *in_evaluation = [given[2].label for given in calls]
    assert 16 < (in_training == 10).sum() < 48
    assert all(torch.equal(label, batch.labels) for label in in_evaluation)


def test_labels_do_not_move_the_noise(config):
    """The network's inputs are equal with and without labels: labels do not change earlier random draws."""
    shown = []
    for task in ("images", "labelled"):
        parts, batch, calls = learner(config, f"task={task}")
        parts.objective(batch, BatchGenerator([7, 8]))
        shown.append(calls[0])
    assert torch.equal(shown[0][0], shown[1][0])
    assert torch.equal(shown[0][1].t, shown[1][1].t)


@pytest.mark.parametrize(("dropout", "learn"), [(0.0, range(10)), (1.0, [10])])
def test_the_null_row_learns_from_withheld_labels_alone(config, dropout, learn):
    parts, batch, _ = learner(config, "task=labelled", f"task.dropout={dropout}")
    randomised(parts.denoiser)
    parts.objective(batch, BatchGenerator([7]))[0].backward()
    rows = parts.denoiser.labels.table.weight.grad.abs().sum(1).nonzero().flatten()
    assert rows.tolist() == list(learn)


@pytest.mark.parametrize("layer", [1, 4, 8])
def test_a_labelled_dit_folds_into_a_plain_vit_with_the_null_class(config, layer):
    argv = ("data=cifar10", "denoiser=dit_128x8", "task=labelled", "tokenizer.scaling=one")
    torch.manual_seed(0)
    parts = Parts(config("pretrain", "experiment=deconstruct/12_ldae", *argv))
    images = torch.rand(8, 3, 32, 32)
    parts.tokenizer.fit([2 * images - 1])
    randomised(parts.denoiser, by=0.05)
    encoder = Encoder(parts.objective, layer=layer, t=10)
    plain = plain_vit(encoder)
    with torch.no_grad():
        tokens = encoder.network.encode(2 * images - 1, parts.schedule.at(torch.full((8,), 10)), layers=[layer])
        assert (plain(2 * images - 1) - encoder(images)).abs().max() < 1e-4
        assert tokens[layer].std() > 0.1
    assert not any("ada" in name or "labels" in name for name in plain.state_dict())
