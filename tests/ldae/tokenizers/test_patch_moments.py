"""Moments of patches against NumPy's, on whole levels and on any numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ldae.tokenizers import patch_moments
from ldae.tokenizers.patch_linear import PatchPCA
from ldae.tokenizers.patch_moments import PatchMoments, whole_levels


def images_of_8_bits(rows, seed=0):
    """Correlated pixels (rows, 12) that are whole levels, as a loader and the task `images` make them."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randint(-90, 91, (rows, 1), generator=generator)
    k = (128 + shared + torch.randint(-40, 41, (rows, 12), generator=generator)).clamp(0, 255).to(torch.uint8)
    return 2 * (k.float() / 255) - 1


def summed(*parts):
    moments = PatchMoments(parts[0].shape[1], lambda rows: rows)
    for part in parts:
        moments.add(part)
    return moments


def agrees(moments, rows, tolerance):
    mean, covariance = moments.moments
    exact = rows.double().numpy()
    assert mean.numpy() == pytest.approx(exact.mean(0), abs=tolerance)
    assert covariance.numpy() == pytest.approx(np.cov(exact.T, bias=True), abs=tolerance)


@pytest.fixture(params=[True, False], ids=["int8", "float32"])
def kind_of_product(request, monkeypatch):
    """The products that this CPU has instructions for, or those of other CPUs."""
    if request.param and not patch_moments.multiplies_int8():
        pytest.skip("this CPU has no instructions for products of int8")
    monkeypatch.setattr(patch_moments, "multiplies_int8", lambda: request.param)


@pytest.mark.usefixtures("kind_of_product")
def test_levels_are_summed_without_rounding(monkeypatch):
    monkeypatch.setattr(patch_moments, "ROWS", 128)
    rows = images_of_8_bits(1000)
    moments = summed(rows[:300], rows[300:])
    agrees(moments, rows, 1e-7)  # x is float32, the levels behind it are not rounded
    k = (whole_levels(rows).double() + 128).numpy()
    assert moments.moments[1].numpy() == pytest.approx(np.cov((2 * k / 255 - 1).T, bias=True), abs=1e-15)


@pytest.mark.usefixtures("kind_of_product")
@pytest.mark.parametrize("level", [0, 1, 2, 255])
def test_sums_of_the_largest_products_are_exact(level):
    rows = torch.full((10000, 40), level, dtype=torch.uint8)
    rows[:, 1::2] = 1  # -127: products are odd, and sums of more than 1040 of them are no float32
    with torch.autocast("cpu", torch.bfloat16):
        (sums,) = summed(rows).parts.values()
    exact = rows.long() - 128
    assert torch.equal(sums.outer, (exact.T @ exact).double())
    assert torch.equal(sums.total, exact.sum(0).double())


@pytest.mark.usefixtures("kind_of_product")
@pytest.mark.parametrize("size", [31, 270, 300, 769])
def test_blocks_of_the_product_make_all_of_it(size):
    k = torch.randint(256, (80, size), generator=torch.Generator().manual_seed(0))
    (sums,) = summed(2 * (k.float() / 255) - 1).parts.values()
    assert torch.equal(sums.outer, (k - 128).double().T @ (k - 128).double())


def test_a_fit_on_planar_rows_is_one_on_rows():
    images = 2 * torch.randint(256, (20, 3, 16, 16), generator=torch.Generator().manual_seed(0)).float().div(255) - 1
    tokenizer = PatchPCA((3, 16, 16), 4, 8)
    moments = PatchMoments(tokenizer.D, tokenizer.rows)
    moments.add(images)
    mean, covariance = moments.moments
    tokenizer.fit([images])
    assert torch.equal(tokenizer.mean, mean.float())
    variances = torch.linalg.eigvalsh(covariance).flip(0)
    assert tokenizer.eigenvalues.numpy() == pytest.approx(variances.numpy(), abs=1e-6)
    assert torch.equal(tokenizer.planar_rows(images)[:, tokenizer.planar_order], tokenizer.rows(images))


def test_a_fit_on_bytes_is_one_on_floats_to_the_bit():
    pixels = torch.randint(256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    kept = pixels.clone()
    one, other = (PatchPCA((3, 16, 16), patch, 3 * patch**2) for patch in (16, 16))
    one.fit([2 * (pixels.float() / 255) - 1])
    other.fit([pixels])
    assert torch.equal(pixels, kept)  # a patch of the whole image is a view of it
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_any_numbers_are_summed_in_float64(shift):
    rows = torch.randn(700, 12, generator=torch.Generator().manual_seed(1)) @ torch.randn(12, 12) + shift
    moments = summed(rows[:200], rows[200:])
    assert set(moments.parts) == {"floats"}
    agrees(moments, rows, 1e-9)


def test_both_kinds_make_one_covariance():
    levels, floats = images_of_8_bits(400), 0.3 * torch.randn(250, 12, generator=torch.Generator().manual_seed(2))
    both = summed(levels, floats)
    assert set(both.parts) == {"levels", "floats"}
    agrees(both, torch.cat([levels, floats]), 1e-7)


def test_every_level_is_known_and_nothing_between():
    k = torch.arange(256)
    assert torch.equal(whole_levels(2 * (k.float() / 255) - 1), (k - 128).to(torch.int8))
    assert whole_levels(torch.tensor([0.5])) is None
    assert whole_levels(torch.tensor([-1.0, 257 / 127.5 - 1])) is None


def test_all_cpus_return_the_same_bits(tmp_path):
    """A fit under a limit to AVX2, where oneDNN's products of int8 saturate, against one by all that this CPU has."""
    rows = images_of_8_bits(500)
    torch.save(rows, tmp_path / "rows.pt")
    code = """import sys, torch
from ldae.tokenizers.patch_moments import PatchMoments
moments = PatchMoments(12, lambda rows: rows)
moments.add(torch.load(sys.argv[1]))
torch.save(moments.moments, sys.argv[1])"""
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", code, str(tmp_path / "rows.pt")]
    subprocess.run(command, env={**os.environ, **limits}, check=True)
    for a, b in zip(summed(rows).moments, torch.load(tmp_path / "rows.pt"), strict=True):
        assert torch.equal(a, b)
