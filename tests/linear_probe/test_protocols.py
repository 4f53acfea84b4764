"""Protocols choose on the hold-out, banks are whole, result lines are complete."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from linear_probe.baselines import PIXELS, raw_pixels, whole_image_pca
from linear_probe.features import Bank, FeatureKey, Features, extract
from linear_probe.protocols import KNN, LBFGS, SGDHeads, joined
from linear_probe.registry import PROTOCOLS
from linear_probe.results import (
    Result,
    describe_features,
    grid,
    markdown,
    panel,
    parse_feature_key,
    read_results,
    table,
    write_results,
)


@dataclass
class ABatch:
    images: torch.Tensor
    labels: torch.Tensor


def clusters(count, seed, spread=1.0):
    """Three classes around three points of a plane in 8 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    centres = torch.zeros(3, 8)
    centres[range(3), range(3)] = 4
    return Features(centres[y] + spread * torch.randn(count, 8, generator=generator) + 5, y)


# shorter, or for so few images longer
LENGTHS = {"dinov2": {"batch": 64, "steps": 300}, "ddae": {"batch": 32, "epochs": 60}}
PLAIN = [name for name, p in PROTOCOLS.items() if not name.endswith("_augmented") and not p.needs_outliers]


@pytest.mark.parametrize("name", PLAIN)
def test_every_protocol_finds_plain_classes(name):
    protocol = PROTOCOLS[name]
    train, holdout, test = clusters(600, 0), clusters(90, 1), clusters(300, 2)
    if isinstance(protocol, SGDHeads) and name in LENGTHS:
        protocol = SGDHeads(name, "", replace(protocol.recipe, **LENGTHS[name]))
    choice = protocol.select(train, holdout, 3, seed=0)
    least = 90 if name == "retrieval" else 95  # a precision over all neighbours is not an accuracy
    assert choice.accuracy > least
    assert protocol.evaluate(choice.setting, joined(train, holdout), test, 3, seed=0).score > least


def test_the_setting_is_the_best_of_the_holdout():
    train, holdout = clusters(300, 0, spread=3.0), clusters(300, 1, spread=3.0)
    protocol = KNN()
    scores = {k: protocol.evaluate({"k": k}, train, holdout, 3, 0).score for k in KNN.KS}
    choice = protocol.select(train, holdout, 3, 0)
    assert choice.accuracy == max(scores.values()) == scores[choice.setting["k"]]
    linear = LBFGS((1e4, 1e-3))
    scores = {p: linear.evaluate({"penalty": p}, train, holdout, 3, 0).score for p in linear.penalties}
    assert len(set(scores.values())) == 2
    chosen = linear.select(train, holdout, 3, 0)
    assert chosen.accuracy == pytest.approx(max(scores.values()))
    assert scores[chosen.setting["penalty"]] == max(scores.values())


def test_whitening_helps_where_some_directions_drown_the_rest():
    def drowned(count, seed):
        features = clusters(count, seed, spread=0.5)
        features.x[:, 3:] += 300 * torch.randn(count, 5, generator=torch.Generator().manual_seed(seed + 9))
        return features

    train, test = drowned(600, 0), drowned(300, 1)
    assert KNN().evaluate({"k": 10}, train, test, 3, 0).score < 60
    assert KNN(whiten=True).evaluate({"k": 10}, train, test, 3, 0).score > 95


def batches(n=25):
    images = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return [ABatch(images[i : i + 10], torch.arange(n)[i : i + 10]) for i in range(0, n, 10)]


A, B = FeatureKey(1, 10), FeatureKey(2, 10, "noised")


def encode(batch):
    return {A: batch.images.flatten(1), B: batch.images.mean((2, 3))}


def test_a_bank_holds_every_feature_key_and_is_reused(tmp_path):
    bank = extract(encode, [A, B], batches(), 25, tmp_path / "bank")
    images = torch.cat([b.images for b in batches()])
    assert torch.equal(bank[A].x, images.flatten(1))
    assert torch.equal(bank[B].x, images.mean((2, 3)))
    assert torch.equal(bank[A].y, torch.arange(25))
    again = extract(None, [A], [], 25, tmp_path / "bank")  # nothing is encoded
    assert torch.equal(again[A].x, bank[A].x)


def test_a_damaged_bank_is_extracted_again(tmp_path):
    extract(encode, [A], batches(), 25, tmp_path / "bank")
    path = tmp_path / "bank" / f"{A}.npy"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    bank = extract(encode, [A], batches(), 25, tmp_path / "bank")
    assert torch.equal(bank[A].x, torch.cat([b.images for b in batches()]).flatten(1))


def test_a_bank_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="the loader yielded 25 images, not 26"):
        extract(encode, [A], batches(), 26, tmp_path / "bank")
    with pytest.raises(ValueError, match="not finite"):
        extract(lambda batch: {A: batch.images.flatten(1) * np.nan}, [A], batches(), 25, tmp_path / "bank")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no complete bank"):
        Bank(tmp_path)


def test_baselines_are_pixels_and_their_principal_components():
    images = torch.cat([b.images for b in batches()])
    pixels = Features(raw_pixels(images)[PIXELS], torch.arange(25))
    assert torch.equal(pixels.x, images.flatten(1))
    reduced = whole_image_pca(pixels, 5)(pixels.x)
    assert reduced.shape == (25, 5)
    covariance = torch.cov(reduced.T)
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-5 * covariance.max()


def a_result(**changes):
    known = {name: "x" for name in Result.__dataclass_fields__}
    known |= {"labels": "all", "seeds": [], "deviation": None}
    numbers = {"accuracy": 51.234, "images": 10, "selected_accuracy": 50.0, "layer": 4, "t": 10, "dimensions": 128}
    return Result(**{**known, **numbers, "step": 7, "seed": 0, "selected": {"k": 20}, **changes})


def test_result_lines_come_back(tmp_path):
    results = [a_result(encoder="a"), a_result(encoder="b", protocol="knn")]
    write_results(tmp_path / "r.jsonl", results)
    assert read_results(tmp_path / "r.jsonl") == results
    assert json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])["selected"] == {"k": 20}


def test_a_table_has_a_row_for_each_encoder_and_a_column_for_each_protocol():
    results = [a_result(encoder="a", protocol="p"), a_result(encoder="b", protocol="q", accuracy=7.0)]
    lines = table(results).splitlines()
    assert lines[0].split() == ["|", "encoder", "|", "p", "|", "q", "|"]
    assert lines[2].split() == ["|", "a", "|", "51.23", "|", "|"]
    assert lines[3].split() == ["|", "b", "|", "|", "7.00", "|"]
    assert len({len(line) for line in lines}) == 1
    assert markdown([["h", "i"], ["a", "1"]]).splitlines()[1] == "|-----|----:|"


def test_several_seeds_stand_in_a_table_with_their_deviation():
    results = [a_result(encoder="a", protocol="p", accuracy=54.83, deviation=0.312, seeds=[0, 1, 2])]
    assert "54.8 ± 0.3" in table(results)


@pytest.mark.case("A3", "a changed digit in a line of results")
def test_a_damaged_line_is_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    write_results(path, [a_result(encoder="a"), a_result(encoder="b")])
    path.write_text(path.read_text().replace("51.234", "71.234", 1))
    with pytest.raises(ValueError, match="the line of a is damaged"):
        read_results(path)


def test_a_line_from_before_labels_and_seeds_is_read(tmp_path):
    line = json.loads(a_result().line())
    for key in ("labels", "seeds", "deviation", "sha256"):
        del line[key]
    (tmp_path / "r.jsonl").write_text(json.dumps(line) + "\n")
    (result,) = read_results(tmp_path / "r.jsonl")
    assert (result.labels, tuple(result.seeds), result.deviation) == ("all", (), None)


def test_combined_steps_have_a_column_of_their_own():
    both = FeatureKey(2, 10, pooling="grid2", further=(40, 60), combine="concat")
    assert str(both) == "layer2-t10+40+60-clean-grid2-concat"
    assert parse_feature_key(str(both)) == (2, (10, 40, 60), "clean", "grid2-concat")
    assert [str(key) for key in both.single()] == [f"layer2-t{t}-clean-grid2" for t in (10, 40, 60)]
    result = a_result(encoder="a", selected={"among": {str(both): 2.0}, "features": str(both)}, layer=2, t=10)
    assert "t=10+40+60 clean" in grid([result])
    assert describe_features(result).startswith("layer 2, t = 10 + 40 + 60, ")


def test_a_grid_tells_poolings_apart():
    among = {"layer1-t0-clean-mean": 1.0, "layer1-t0-clean-cls": 2.0, "layer2-t0-clean-cls+mean": 3.0}
    result = a_result(encoder="a", selected={"among": among})
    lines = [[feature_key.strip() for feature_key in line.split("|")[1:-1]] for line in grid([result]).splitlines()]
    assert lines[0][2:] == ["t=0 clean cls", "t=0 clean cls+mean", "t=0 clean mean"]
    assert [lines[2][1:], lines[3][1:]] == [["1", "2.0", "", "1.0"], ["2", "", "3.0", ""]]
    assert panel(result) == (["1", "2"], lines[0][2:], [[2.0, None, 1.0], [None, 3.0, None]])
