"""Scores of generative systems."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.ndimage import binary_dilation
from scipy.stats import entropy
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.datasets import load_sample_images
from sklearn.metrics import jaccard_score

from ldae.core.errors import CheckpointError, ConfigError
from ldae.metrics.distances import (
    INCEPTION,
    Moments,
    frechet_distance,
    frechet_distance_infinity,
    inception_score,
    kernel_distance,
    kernel_distance_error,
    metric_name,
    precision_recall,
    squared_mmd,
)
from ldae.metrics.image_quality import consistency, psnr, rmse, ssim
from ldae.metrics.inception import FILE, Inception
from ldae.metrics.segmentation import boundary_f, class_iou, dice, iou, uncertainty, vote


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(x, features="pixels"):
    return Moments.of([x], features)


def test_equal_sets_are_at_no_distance():
    """FID < 1e-3, SSIM 1, RMSE 0; with more images than dimensions and with fewer."""
    for count in (300, 40):
        x = 5 * normal(0, count, 128) + 3
        assert abs(frechet_distance(moments(x), moments(x.clone()))) < 1e-3
    images = torch.rand(4, 3, 16, 16)
    assert ssim(images, images) == pytest.approx(1, abs=1e-6)
    assert rmse(images, images) == 0
    assert consistency(images, images) == 0


# Frechet distance


def gaussian(mean, covariance):
    return Moments("pixels", 101, mean, 100 * covariance)


def test_distance_of_gaussians_whose_axes_agree_has_a_closed_form():
    a, b = torch.rand(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    mean, turn = normal(1, 2, 8), torch.linalg.qr(normal(2, 8, 8)).Q
    A, B = (turn @ torch.diag(x) @ turn.T for x in (a, b))
    expected = ((mean[0] - mean[1]) ** 2).sum() + ((a.sqrt() - b.sqrt()) ** 2).sum()
    assert frechet_distance(gaussian(mean[0], A), gaussian(mean[1], B)) == pytest.approx(float(expected), rel=1e-10)


def _reference_fid(a, b):
    """As published: the matrix root of the product, by scipy."""
    (m, A), (n, B) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a.numpy(), b.numpy()))
    return float(((m - n) ** 2).sum() + np.trace(A) + np.trace(B) - 2 * np.trace(sqrtm(A @ B).real))


def test_distance_is_the_published_formulas():
    a, b = normal(0, 200, 16) @ normal(1, 16, 16), normal(2, 300, 16) @ normal(3, 16, 16) + 1
    distance = frechet_distance(moments(a), moments(b))
    assert distance == pytest.approx(_reference_fid(a, b), rel=1e-8)
    assert distance == pytest.approx(frechet_distance(moments(b), moments(a)), rel=1e-8)


def test_moments_do_not_depend_on_the_batches_and_large_means_cost_no_digits():
    x = normal(0, 100, 8) + 1e6
    for sizes in (100, 1, 7):
        pooled = Moments.of(x.split(sizes), "pixels")
        assert pooled.count == 100
        np.testing.assert_allclose(pooled.mean, x.mean(0), rtol=1e-14)
        np.testing.assert_allclose(pooled.covariance, np.cov(x.numpy(), rowvar=False), atol=1e-8)
    assert Moments.of([x.float()], "pixels").mean.dtype == torch.float64


def test_stored_moments_are_the_same_and_know_their_features(tmp_path):
    original = moments(normal(0, 20, 4), "classifier")
    original.save(tmp_path / "m.safetensors")
    again = Moments.load(tmp_path / "m.safetensors", "classifier")
    assert again.count == 20
    assert torch.equal(again.mean, original.mean)
    assert torch.equal(again.covariance, original.covariance)
    with pytest.raises(CheckpointError, match="holds no moments of inception"):
        Moments.load(tmp_path / "m.safetensors", INCEPTION)
    with pytest.raises(ValueError, match="classifier and of pixels cannot be compared"):
        frechet_distance(original, moments(normal(0, 20, 4)))


def test_published_statistics_are_read_and_pickles_are_not(tmp_path):
    x = normal(0, 50, 4)
    np.savez(tmp_path / "s.npz", mu=x.mean(0).numpy(), sigma=np.cov(x.numpy(), rowvar=False))
    assert frechet_distance(Moments.from_npz(tmp_path / "s.npz", "pixels", 50), moments(x)) < 1e-10
    np.savez(tmp_path / "p.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    for name in ("p.npz", "none.npz"):
        with pytest.raises(CheckpointError, match="no statistics mu and sigma"):
            Moments.from_npz(tmp_path / name, "pixels", 50)


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(moments(normal(0, 1, 4)), moments(normal(0, 9, 4)))
    with pytest.raises(ValueError, match="no features"):
        Moments.of([], "pixels")


def test_only_inceptions_scores_have_the_published_names():
    assert metric_name("frechet_distance", INCEPTION) == "FID"
    assert metric_name("kernel_distance", INCEPTION) == "KID"
    assert metric_name("frechet_distance_infinity", INCEPTION) == "FID infinity"
    assert metric_name("kernel_distance_error", INCEPTION) == "KID standard error"
    assert metric_name("frechet_distance", "classifier") == "frechet_distance[classifier]"
    assert metric_name("recall", INCEPTION) == f"recall[{INCEPTION}]"


# extrapolation to infinitely many images

GENERATED = 1.1 * torch.linspace(2, 0.2, 16, dtype=torch.float64)  # deviations of the axes, 1.1 times the reference's
CLOSED_FORM = float(0.25 + (GENERATED**2).sum() * (1 - 1 / 1.1) ** 2)  # the means differ by 0.5 along one axis


def drawn(seed, count):
    x = normal(seed, count, 16) * GENERATED
    x[:, 0] += 0.5
    return x


def test_few_images_extrapolate_to_the_closed_form():
    """100 images: the plain distance is three times too large, the extrapolated one is right on average."""
    reference = gaussian(torch.zeros(16).double(), torch.diag((GENERATED / 1.1) ** 2))
    rng = torch.Generator().manual_seed(0)
    sets = [drawn(seed, 100) for seed in range(80)]
    plain = [frechet_distance(moments(x), reference) for x in sets]
    extrapolated = [frechet_distance_infinity(x, reference, rng) for x in sets]
    assert np.mean(plain) > 3 * CLOSED_FORM
    error = np.std(extrapolated, ddof=1) / math.sqrt(len(sets))
    assert np.mean(extrapolated) == pytest.approx(CLOSED_FORM, abs=3 * error)
    assert error < CLOSED_FORM / 6  # so that the line above could fail


def test_too_few_images_are_not_extrapolated():
    reference, rng = moments(normal(1, 50, 4)), torch.Generator()
    frechet_distance_infinity(normal(0, 12, 4), reference, rng)
    with pytest.raises(ValueError, match="11 images are too few to extrapolate from; at least 12"):
        frechet_distance_infinity(normal(0, 11, 4), reference, rng)


# kernel distance


def _reference_mmd(a, b):
    """The double sums of arXiv 1801.01401, one pair at a time."""
    k = lambda x, y: (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3  # noqa: E731
    a, b = a.tolist(), b.tolist()
    within = [
        sum(k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j) / len(s) / (len(s) - 1) for s in (a, b)
    ]
    return sum(within) - 2 * sum(k(x, y) for x in a for y in b) / len(a) / len(b)


def test_kernel_distance_is_its_double_sum():
    a, b = normal(0, 9, 5), normal(1, 12, 5) + 0.5
    assert squared_mmd(a, b).item() == pytest.approx(_reference_mmd(a, b), rel=1e-12)
    mean, deviation = kernel_distance(a[:9], b[:9], torch.Generator(), subsets=3)  # each subset is the whole set
    assert mean == pytest.approx(_reference_mmd(a, b[:9]), rel=1e-12)
    assert deviation == pytest.approx(0, abs=1e-12)


def test_kernel_distance_is_unbiased():
    """0 on average for sets of one distribution, however small; above it for others."""
    distances = [squared_mmd(normal(2 * i, 8, 3), normal(2 * i + 1, 8, 3)).item() for i in range(2000)]
    assert abs(np.mean(distances)) < 3 * np.std(distances) / math.sqrt(2000)
    assert min(distances) < 0
    generator = torch.Generator().manual_seed(0)
    far, _ = kernel_distance(normal(0, 500, 3), normal(1, 500, 3) + 1, generator, subsets=20, size=100)
    assert far > 10 * np.std(distances) / math.sqrt(2000)
    with pytest.raises(ValueError, match="at least two"):
        kernel_distance(normal(0, 1, 3), normal(1, 9, 3), generator)


@pytest.mark.parametrize(("shift", "most"), [(0.7, 1.3), (0.0, 10**0.5 * 1.2)])
def test_the_error_of_the_kernel_distance_is_its_spread_over_repetitions(shift, most):
    """That of different distributions; of equal ones, ten subsets give at most the root of ten times as much."""
    rng = torch.Generator().manual_seed(0)
    sets = [(normal(2 * i, 120, 4), normal(2 * i + 1, 200, 4) + shift) for i in range(150)]
    spread = np.std([squared_mmd(a, b).item() for a, b in sets], ddof=1)
    error = math.sqrt(np.mean([kernel_distance_error(a, b, rng) ** 2 for a, b in sets]))
    assert 0.8 * spread < error < most * spread
    with pytest.raises(ValueError, match="at least four"):
        kernel_distance_error(normal(0, 3, 4), normal(1, 9, 4), rng)


def test_kernel_distance_is_that_of_torchmetrics():
    reference = pytest.importorskip("torchmetrics.image.kid").poly_mmd
    a, b = normal(0, 30, 6), normal(1, 30, 6) + 0.3
    assert squared_mmd(a, b).item() == pytest.approx(reference(a, b).item(), rel=1e-9)


# Inception score


def test_score_is_one_for_one_class_and_k_for_k_sure_classes():
    alike = torch.rand(10, generator=torch.Generator().manual_seed(0)).expand(100, 10)
    assert inception_score(alike / alike.sum(1, keepdim=True))[0] == pytest.approx(1, abs=1e-9)
    sure = torch.eye(10)[torch.arange(200) % 10]
    assert inception_score(sure, splits=10) == pytest.approx((10, 0), abs=1e-9)
    half = torch.eye(10)[torch.arange(200) % 2]
    assert inception_score(half)[0] == pytest.approx(2, abs=1e-9)


def test_score_is_the_exponent_of_the_mutual_information():
    """E KL(p(y|x) || p(y)) = H(p(y)) - E H(p(y|x)); the deviation is that of the parts."""
    p = normal(0, 60, 7).softmax(1)
    entropy = lambda q: -(q * q.log()).sum(-1)  # noqa: E731
    parts = [float((entropy(q.mean(0)) - entropy(q).mean()).exp()) for q in p.chunk(3)]
    assert inception_score(p, splits=3) == pytest.approx((np.mean(parts), np.std(parts)), rel=1e-10)


# precision and recall


def test_precision_and_recall_of_known_configurations():
    line = torch.arange(12.0)[:, None]
    assert precision_recall(line, line.clone()) == (1, 1)
    assert precision_recall(line, line + 100) == (0, 0)
    left = line[
        :6
    ]  # all of it is real; the ball about its last point, 5, reaches 3 further: 0 to 8 of the real are met
    assert precision_recall(line, left) == (1, 9 / 12)
    both = torch.cat([line, line + 1000])
    assert precision_recall(line, both)[0] == 0.5
    assert precision_recall(line, both)[1] == 1


def test_balls_reach_to_the_kth_neighbour_and_no_further():
    real = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # radii at k = 1: 1, 1, 2, 4
    for x, inside in ((-1.0, True), (-1.01, False), (4.9, True), (5.01, True), (11.0, True), (11.01, False)):
        assert precision_recall(real, torch.tensor([[x], [x]]), k=1)[0] == float(inside)
    assert precision_recall(real[:3], torch.tensor([[5.01], [5.01]]), k=1)[0] == 0
    with pytest.raises(ValueError, match="more than k=3"):
        precision_recall(real[:3], real)


def test_dropped_modes_cost_recall_and_noise_costs_precision():
    real = torch.cat([normal(0, 700, 4), normal(1, 700, 4) + 20])
    fair = torch.cat([normal(2, 700, 4), normal(3, 700, 4) + 20])
    precision, recall = precision_recall(real, fair)
    assert min(precision, recall) > 0.9
    dropped = precision_recall(real, normal(4, 700, 4))
    assert dropped[0] > 0.9
    assert dropped[1] == pytest.approx(0.5, abs=0.05)
    noisy = precision_recall(real, torch.cat([fair[:700], 100 + 50 * normal(5, 700, 4)]))
    assert noisy[0] == pytest.approx(0.5, abs=0.05)


# errors of images


def test_errors_are_those_of_all_numbers_together_and_psnr_that_of_each_image():
    a, b = torch.zeros(2, 1, 1, 2), torch.tensor([[[[0.0, 0.0]]], [[[0.0, 1.0]]]])
    assert rmse(a, b) == 0.5
    assert psnr(a[1:], b[1:]) == pytest.approx(-20 * math.log10(rmse(a[1:], b[1:])))
    assert psnr(a, b) == pytest.approx((120 + psnr(a[1:], b[1:])) / 2)  # equal images count 120
    assert consistency(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.01)) == pytest.approx(10)


@pytest.mark.parametrize("size", [11, 16, 32])
def test_psnr_and_ssim_are_those_of_scikit_image_averaged_over_images(size):
    pictures = torch.stack([torch.from_numpy(x[:size, :size].copy()) for x in load_sample_images().images])
    a = pictures.movedim(-1, 1).float() / 255
    b = (a + torch.tensor([0.02, 0.2]).reshape(2, 1, 1, 1) * normal(0, *a.shape).float()).clamp(0, 1)
    b[..., 0] = 0  # an error at the border, which counts less than one inside
    pairs = [(x.numpy(), y.numpy()) for x, y in zip(a, b, strict=True)]
    settings = {"channel_axis": 0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    similar = np.mean([structural_similarity(x, y, data_range=1, **settings) for x, y in pairs])
    assert ssim(a, b) == pytest.approx(similar, abs=1e-4)
    assert psnr(a, b) == pytest.approx(np.mean([peak_signal_noise_ratio(x, y, data_range=1) for x, y in pairs]))
    assert psnr(a, b) > -20 * math.log10(rmse(a, b))  # the error over all images together


# segmentation


def disk(y=16.0, x=16.0, r=8.0, side=32):
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return (((rows - y) ** 2 + (columns - x) ** 2) <= r**2).float()[None, None]


EMPTY, FULL = torch.zeros(1, 1, 32, 32), torch.ones(1, 1, 32, 32)


@pytest.mark.parametrize("mask", [disk(), disk(0, 0), EMPTY, FULL], ids=["disk", "corner", "empty", "full"])
def test_equal_masks_agree_wholly(mask):
    for score in (iou, dice, boundary_f):
        assert score(mask, mask).tolist() == [1]


def test_a_mask_moved_by_a_pixel_has_nearly_its_boundary():
    """Above 0.9 at every radius from 1 on."""
    for moved in (disk().roll(1, 2), disk().roll(1, 3)):
        for radius in (1, 2, 5):
            assert boundary_f(moved, disk(), [radius]).item() > 0.9
        assert iou(moved, disk()).item() < 0.9
    assert boundary_f(disk().roll(1, 3), disk(), [0]).item() < 0.6


@pytest.mark.parametrize("truth", [disk(), FULL])
def test_an_empty_answer_scores_nothing(truth):
    """No division by zero."""
    for score in (iou, dice, boundary_f):
        assert score(EMPTY, truth).tolist() == [0]
        assert score(truth, EMPTY).tolist() == [0]


def test_overlaps_are_counted_for_each_image():
    a, b = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    a[:, :, :2], b[0, :, 1:3], b[1, :, :2] = 1, 1, 1
    assert iou(a, b).tolist() == [4 / 12, 1]
    assert dice(a, b).tolist() == [8 / 16, 1]
    u = torch.rand(2, 50, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    torch.testing.assert_close(dice(*u), 2 * iou(*u) / (1 + iou(*u)))


def _reference_boundary_f(a, b, r):
    """The boundaries dilated by a disk and matched, as the benchmark does it."""
    rows, columns = np.mgrid[-r : r + 1, -r : r + 1]
    element = rows**2 + columns**2 <= r**2
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)
    edges = [m & binary_dilation(~m, cross) for m in (a, b)]
    near = [binary_dilation(e, element) for e in edges]
    precision, recall = (edges[0] & near[1]).sum() / edges[0].sum(), (edges[1] & near[0]).sum() / edges[1].sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_boundary_f_is_the_match_of_dilated_boundaries():
    generator = np.random.default_rng(0)
    for _ in range(10):
        a, b = (disk(*generator.uniform((10, 10, 3), (22, 22, 10))) for _ in range(2))
        expected = np.mean(
            [_reference_boundary_f(a[0, 0].bool().numpy(), b[0, 0].bool().numpy(), r) for r in range(1, 6)]
        )
        assert boundary_f(a, b).item() == pytest.approx(expected, abs=1e-12)


def test_the_border_of_the_image_is_no_boundary():
    left, right = FULL.clone(), FULL.clone()
    left[..., 16:], right[..., :16] = 0, 0
    assert boundary_f(left, right, [1]).item() == 1  # they meet at one line
    assert iou(left, right).item() == 0


def test_the_vote_is_of_means_not_of_majorities():
    """The second pixel: two of three runs are above one half, their mean is below."""
    runs = torch.tensor([[0.4, 0.2], [0.6, 0.6], [0.9, 0.6]]).reshape(3, 2, 1, 1, 1)
    assert vote(runs).flatten().tolist() == [1, 0]


# Inception


def test_absent_weights_are_one_sentence_that_names_file_place_and_alternative(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for weights, place in ((None, tmp_path / "hub" / "checkpoints" / FILE), ("nowhere", "nowhere")):
        with pytest.raises(ConfigError) as error:
            Inception(weights)
        assert f"features='inception' needs weights that are not there: put torch-fidelity's {FILE}" in str(error.value)
        assert f" at {place}, or use features=classifier" in str(error.value)


def test_inception_of_random_weights_reads_eight_bits(tmp_path):
    """Images are rounded to 8 bits as in files: those that agree in 8 bits have the same features."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="pip install 'ldae[fid]'")

    class Random(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_):
            """Keep the initial weights."""

    torch.manual_seed(0)
    torch.save({}, tmp_path / "empty.pth")
    network = Random("x", ["2048"], str(tmp_path / "empty.pth"))
    torch.save(network.state_dict(), tmp_path / FILE)
    inception, images = Inception(str(tmp_path / FILE)), torch.rand(2, 3, 32, 32).mul(255).round() / 255
    features, probabilities = inception(images)
    assert features.shape == (2, 2048)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))
    assert torch.equal(inception(images + 0.4 / 255)[0], inception((images + 0.4 / 255).clamp(0, 1))[0])
    assert torch.equal(inception(images + 0.4 / 255)[0], features)
    assert not torch.equal(inception(images + 0.6 / 255)[0], features)
    torch.save(Canary(tmp_path / "canary"), tmp_path / "canary.pth")
    for name in ("empty.pth", "canary.pth"):
        with pytest.raises(CheckpointError, match="does not hold Inception's weights"):
            Inception(str(tmp_path / name))
    assert not (tmp_path / "canary").exists()


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def one_hot(index, classes):
    """(B, H, W) -> (B, K, H, W); -1 is of no class."""
    return torch.nn.functional.one_hot(index + 1, classes + 1)[..., 1:].movedim(-1, 1).float()


def test_the_iou_of_classes_is_scikit_learn_s_jaccard_score():
    generator = torch.Generator().manual_seed(0)
    predicted, truth = torch.randint(0, 4, (2, 5, 12, 12), generator=generator)
    class_ious = class_iou(one_hot(predicted, 4), one_hot(truth, 4))
    expected = jaccard_score(truth.flatten(), predicted.flatten(), average=None)
    assert class_ious.numpy() == pytest.approx(expected, abs=1e-12)
    void = truth.clone()
    void[:, :3] = -1
    counted = void.flatten() >= 0
    expected = jaccard_score(truth.flatten()[counted], predicted.flatten()[counted], average=None)
    assert class_iou(one_hot(predicted, 4), one_hot(void, 4)).numpy() == pytest.approx(expected, abs=1e-12)


def test_a_class_that_is_nowhere_has_no_iou():
    index = torch.tensor([[[0, 0], [2, 2]]])
    assert class_iou(one_hot(index, 4), one_hot(index, 4)).isnan().tolist() == [False, True, False, True]
    class_ious = class_iou(one_hot(index, 4), one_hot(index * 0, 4))
    assert (class_ious[0].item(), class_ious[2].item()) == (0.5, 0)


def test_several_classes_vote_by_their_mean():
    runs = torch.tensor([[0.9, 0.0, 0.4], [0.0, 0.0, 0.5], [0.0, 0.6, 0.5]])[:, None, :, None, None]
    assert vote(runs)[0, :, 0, 0].tolist() == [0, 0, 1]  # means 0.3, 0.2, 0.47, though each class has the most once
    assert vote(torch.tensor([0.4, 0.6, 0.9])[:, None, None, None, None]).item() == 1
    assert vote(torch.tensor([0.2, 0.6, 0.6])[:, None, None, None, None]).item() == 0


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_uncertainty_is_the_entropy_of_the_mean(classes):
    p = torch.rand(1, 3, classes, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    if classes > 1:
        p = p / p.sum(2, keepdim=True)
    mean = p.mean(0).numpy()
    whole = np.concatenate([mean, 1 - mean], 1) if classes == 1 else mean
    expected = entropy(whole, base=max(classes, 2), axis=1)
    assert uncertainty(p)[:, 0].numpy() == pytest.approx(expected, abs=1e-6)
    certain = one_hot(torch.zeros(1, 2, 2).long(), classes)[None]
    assert uncertainty(certain).max() < 1e-6
    halves = torch.stack([certain[0], 1 - certain[0] if classes == 1 else certain[0].roll(1, 1)])
    assert uncertainty(halves).allclose(torch.tensor(np.log(2) / np.log(max(classes, 2))).float(), atol=1e-5)
