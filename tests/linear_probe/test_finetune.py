"""Fine-tuning: rates by layer, mixed labels, augmentations that are functions of (seed, epoch, index)."""

from __future__ import annotations

import random

import numpy as np
import pytest
import timm
import torch

from ldae.core.errors import ConfigError, Interrupted
from ldae.core.rng import uniforms
from ldae.data.cache import Context
from ldae.data.datasets import Digits, Division
from ldae.data.loader import Loader
from ldae.data.rand_augment import RandAugment
from ldae.engine.checkpoint import newest
from ldae.engine.distributed import World
from ldae.engine.optim import LayerDecay
from ldae.engine.run_folder import RunFolder
from ldae.engine.settings import TrainSettings
from ldae.engine.signals import StopFlag
from ldae.engine.trainer import RunContext, Trainer
from linear_probe.finetune import FineTuning, Mix

CPU = torch.device("cpu")


def vit(classes=10, depth=3):
    torch.manual_seed(0)
    shape = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": depth, "num_heads": 2}
    return timm.create_model("vit_base_patch16_224", num_classes=classes, global_pool="avg", class_token=False, **shape)


def test_every_layer_learns_slower_than_the_next_by_the_factor():
    network = vit(depth=3)
    names = {id(p): n for n, p in network.named_parameters()}
    hyperparameters = {}
    for group in LayerDecay(1e-3, weight_decay=0.1, layer_decay=0.5).build(network).param_groups:
        for p in group["params"]:
            hyperparameters[names[id(p)]] = (group["lr_scale"], group["weight_decay"])
    assert hyperparameters.keys() == set(names.values())  # each once: the optimiser refuses what comes twice
    scale = {name: s for name, (s, _) in hyperparameters.items()}
    assert scale["head.weight"] == 1
    assert [scale[f"blocks.{i}.attn.qkv.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert scale["patch_embed.proj.weight"] == scale["pos_embed"] == 0.0625
    decayed = {name for name, (_, decay) in hyperparameters.items() if decay}
    assert decayed == {n for n, p in network.named_parameters() if p.ndim > 1 and n != "pos_embed"}


def test_without_mixing_targets_are_smoothed_labels():
    labels = torch.tensor([0, 2, 1, 2])
    _, target = Mix(3, mixup=0, cutmix=0, smoothing=0.3)(torch.rand(4, 3, 8, 8), labels)
    assert torch.allclose(target, 0.1 + 0.7 * torch.nn.functional.one_hot(labels, 3))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_soft_targets_have_the_mixing_ratio_of_the_images(mixup, cutmix):
    """One image is black, the other white: the fraction of white is the weight of the other's label."""
    images = torch.zeros(2, 3, 8, 8)
    images[1] = 1
    for seed in range(5):
        torch.manual_seed(seed)
        mixed, target = Mix(2, mixup, cutmix, smoothing=0)(images, torch.tensor([0, 1]))
        assert torch.allclose(mixed.mean((1, 2, 3)), target[:, 1], atol=1e-6)
        assert torch.allclose(target.sum(1), torch.ones(2))
    assert images[0].max() == 0  # the caller's images are left as they are


def test_mixing_follows_torchs_random_numbers_and_leaves_numpys_alone():
    images, labels, mix = torch.rand(4, 3, 8, 8), torch.arange(4), Mix(4)
    np.random.seed(5)
    expected = np.random.rand(3)
    np.random.seed(5)
    mixed = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        mixed.append(mix(images, labels)[0])
    assert torch.equal(mixed[0], mixed[1])
    assert not torch.equal(mixed[0], mixed[2])
    assert np.array_equal(np.random.rand(3), expected)


def test_rand_augment_is_a_function_of_seed_epoch_and_index_alone():
    augment, index = RandAugment(), torch.tensor([4, 7, 11])
    images = torch.rand(3, 3, 16, 16)
    random.seed(1), np.random.seed(1)
    first = augment(images, uniforms(0, 2, index, augment.n))
    turned = augment(images.flip(0), uniforms(0, 2, index.flip(0), augment.n)).flip(0)
    assert torch.equal(first, turned)
    assert not torch.equal(first, augment(images, uniforms(0, 3, index, augment.n)))
    value = random.random()
    random.seed(1)
    assert value == random.random()


def test_the_strongest_operations_work_on_every_image():
    augment = RandAugment(magnitude=10, deviation=1.0)
    index = torch.arange(300)
    augmented = augment(torch.rand(300, 3, 8, 8), uniforms(0, 0, index, augment.n))
    assert augmented.shape == (300, 3, 8, 8)
    assert 0 <= augmented.min() < augmented.max() <= 1


def test_masks_are_not_left_behind():
    augment = RandAugment()
    with pytest.raises(ConfigError, match="masks"):
        augment(torch.rand(1, 4, 8, 8), torch.rand(1, augment.n))


def tuning(path, stop=None, monitors=()):
    """Six steps of fine-tuning a random network on digits."""
    path.mkdir(exist_ok=True)
    images = Digits(8, Division()).open(Context(path)).train
    module = FineTuning(vit(), Mix(10), (0.5,) * 3, (0.5,) * 3)
    settings = TrainSettings(batch=32, steps=6, precision="fp32", log_every=1, checkpoint_every=4, ema=0.5)
    loader = Loader(images, RandAugment(), 32, 0, CPU)
    job = RunContext(RunFolder(path), World(CPU), {"config": {}}, monitors, stop or StopFlag())
    return Trainer({"classifier": module}, loader, LayerDecay(1e-2, layer_decay=0.5), settings, 0, job)


class StopAtTwo:
    """A signal that comes before the third step."""

    name, every = "stop", 1

    def __init__(self, flag):
        self.flag = flag

    def __call__(self, step):
        if step == 2:
            self.flag.signal_name = "SIGTERM"
        return {}, {}


def test_fine_tuning_goes_on_bit_for_bit(tmp_path):
    tuning(tmp_path / "straight").fit()
    flag = StopFlag()
    with pytest.raises(Interrupted):
        tuning(tmp_path / "halted", flag, [StopAtTwo(flag)]).fit()
    resumed = tuning(tmp_path / "halted")
    resumed.fit()
    straight, halted = (newest(tmp_path / n / "checkpoints").tensors("ema") for n in ("straight", "halted"))
    assert straight.keys() == halted.keys()
    assert all(torch.equal(straight[name], halted[name]) for name in straight)
    rates = {group["lr_scale"]: group["lr"] for group in resumed.state.optimizers["classifier"].param_groups}
    assert all(rate == pytest.approx(scale * rates[1.0]) for scale, rate in rates.items())
    assert rates[1.0] > 0


def test_a_classifier_is_scored_in_eval_mode_and_left_in_training():
    module = FineTuning(vit(classes=2), Mix(2), (0.5,) * 3, (0.5,) * 3).train()

    class Lot:
        images, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 0, 1, 0, 1])

    predicted = module.eval().logits(Lot.images).argmax(1)
    module.train()
    assert torch.equal(module.correct([Lot, Lot]), (predicted == Lot.labels).repeat(2))
    assert module.training
