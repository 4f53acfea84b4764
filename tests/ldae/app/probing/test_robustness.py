"""Corruptions of test images: laws of each, independence of the batch, and the accuracies under them."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from helpers import run
from PIL import Image
from scipy.ndimage import gaussian_filter

from ldae.app.probing.robustness import CORRUPTIONS, STRENGTHS, CommonCorruption
from ldae.core.types import Batch
from linear_probe.results import read_results

SIDES = (32, 96)  # parameters of CIFAR-10-C and of ImageNet-C


def batch(side, count=4, first=0):
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(8, 3, 6, 6, generator=generator)
    images = torch.nn.functional.interpolate(coarse, side, mode="bicubic").clamp(0, 1)[first : first + count]
    return Batch(images=images, labels=torch.zeros(count).long(), index=torch.arange(first, first + count))


def distance(a, b):
    return float((a - b).abs().mean())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_each_strength_corrupts_more_than_none_and_the_strongest_most(name, side):
    clean = batch(side)
    changes = [distance(CommonCorruption(name, s)(clean, 0).images, clean.images) for s in STRENGTHS]
    assert 0 < changes[0] < changes[-1]


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_an_image_is_corrupted_the_same_way_in_every_batch(name):
    corruption = CommonCorruption(name, 3)
    whole, half = corruption(batch(32, 4), 5).images, corruption(batch(32, 2, first=2), 5).images
    assert torch.allclose(whole[2:], half, atol=1e-6)
    assert 0 <= float(whole.min()) <= float(whole.max()) <= 1


@pytest.mark.parametrize("name", ["noise", "snow"])
def test_random_corruptions_depend_on_seed_and_image(name):
    images = torch.full((2, 3, 32, 32), 0.5)
    flat = Batch(images=images, labels=torch.zeros(2).long(), index=torch.arange(2))
    one, other = (CommonCorruption(name, 4)(flat, seed).images for seed in (0, 1))
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, other)


def test_noise_has_the_published_deviation():
    flat = Batch(images=torch.full((8, 3, 64, 64), 0.5), labels=torch.zeros(8).long(), index=torch.arange(8))
    for strength, sigma in zip(STRENGTHS, (0.04, 0.06, 0.08, 0.09, 0.10), strict=True):
        images = CommonCorruption("noise", strength)(flat, 0).images
        assert float(images.std()) == pytest.approx(sigma, rel=0.02)


def test_blur_is_scipys_and_contrast_keeps_the_mean():
    clean = batch(96)
    blurred = CommonCorruption("blur", 2)(clean, 0).images[0, 1].numpy()
    assert np.abs(blurred - gaussian_filter(clean.images[0, 1].numpy(), 2.0, mode="mirror", truncate=4)).max() < 1e-4
    dull = CommonCorruption("contrast", 3)(clean, 0).images
    mean = clean.images.mean((2, 3), keepdim=True)
    assert torch.allclose(dull - mean, 0.2 * (clean.images - mean), atol=1e-6)


def test_jpeg_is_pillows_and_pixelate_makes_blocks():
    clean = batch(96)
    pixels = (clean.images[0] * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=15)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    assert torch.equal(CommonCorruption("jpeg", 3)(clean, 0).images[0], expected)
    blocks = CommonCorruption("pixelate", 5)(clean, 0).images[0, 0]
    assert len(blocks.unique(dim=0)) == 24  # a quarter of 96 rows


def test_a_split_names_its_corruption():
    corruption = CommonCorruption("blur", 3)
    assert CommonCorruption.of_split(corruption.split) == corruption
    assert CommonCorruption.of_split("test") is None


def test_the_accuracy_is_the_mean_over_corruptions_and_strengths(tmp_path):
    argv = ("baseline=pixels", "data=digits", "protocols=[lbfgs,knn]", f"out={tmp_path}", "runtime.threads=1")
    out, _ = run("probe", *argv, "corruptions=[noise,contrast]")
    assert "Accuracy under corruption" in out or "Top-1 accuracy under corruption" in out
    linear, knn = read_results(tmp_path / "results-pixels-corrupted.jsonl")
    assert {linear.measure, knn.measure} == {"accuracy under corruption"}
    for result in (linear, knn):
        by_name = [result.further[name] for name in ("noise", "contrast")]
        by_strength = [result.further[f"strength {s}"] for s in STRENGTHS]
        assert np.mean(by_name) == pytest.approx(result.accuracy, abs=0.01)
        assert np.mean(by_strength) == pytest.approx(result.accuracy, abs=0.01)
        assert result.per_image().mean() * 100 == pytest.approx(result.accuracy, abs=0.01)
        assert result.low < result.accuracy < result.high
    run("probe", *argv)
    clean = read_results(tmp_path / "results-pixels.jsonl")[0]
    assert (clean.measure, clean.accuracy > linear.accuracy) == ("accuracy", True)
    assert clean.selected == linear.selected


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        (("corruptions=[fog]",), 2, "corruptions='fog' is none of: noise, blur"),
        (("corruptions=[noise]", "split=holdout"), 2, "corrupts the test images; leave split=holdout out"),
        (("corruptions=[noise,noise]",), 2, "must name each once"),
        (("protocols=[ood_knn]",), 2, "outliers=null is not set; protocol ood_knn needs another data set"),
        (("outliers=photos",), 2, "outliers='photos' is used by protocols=[ood_knn,ood_energy]"),
        (("outliers=cifar10", "protocols=[ood_knn]"), 2, "outliers.root"),
    ],
)
def test_what_cannot_be_corrupted_or_told_apart_is_refused(tmp_path, in_process, argv, code, sentence):
    refused = in_process("probe", "baseline=pixels", "data=digits", *argv, f"out={tmp_path / 'p'}")
    assert (refused[0], sentence in refused[1]) == (code, True), refused[1]
    assert not list((tmp_path / "p").glob("*.jsonl"))


def test_outliers_are_told_apart_by_their_features(tmp_path, in_process, capsys):
    argv = ("baseline=pixels", "data=digits", "protocols=[lbfgs,ood_knn,ood_energy,retrieval]", "outliers=photos")
    assert in_process("probe", *argv, f"out={tmp_path}", "runtime.threads=1")[0] == 0
    linear, knn, energy, retrieval = read_results(tmp_path / "results-pixels.jsonl")
    assert (knn.measure, energy.measure, retrieval.measure) == ("AUROC", "AUROC", "mAP")
    assert (linear.outliers, knn.outliers, retrieval.outliers) == ("", "Photos", "")
    assert knn.accuracy > 99  # a photograph has few dark pixels
    for result in (knn, energy, retrieval):
        assert result.per_image().mean() * 100 == pytest.approx(result.accuracy, abs=0.01)
    assert 0 <= knn.further["FPR95"] < 5
    assert set(retrieval.further) == {"recall@1", "recall@5", "recall@10"}
    printed = capsys.readouterr().out
    assert "outliers kNN AUROC" in printed
    assert "linear: calibration error" in printed
