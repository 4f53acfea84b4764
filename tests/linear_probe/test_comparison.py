"""Comparisons of encoders whose errors are known image by image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from report_rows import RESULT

from linear_probe.comparison import Column, Comparison
from linear_probe.results import pack_correct, pack_values, unpack_correct, unpack_values
from linear_probe.statistics import critical_difference, paired_difference

IMAGES = 400
RNG = np.random.default_rng(0)
GOOD = RNG.random((1, IMAGES)) < 0.9
CLOSE = GOOD.copy()  # 6 other images wrong, 4 other ones right
CLOSE[0, np.concatenate([np.flatnonzero(GOOD)[:6], np.flatnonzero(~GOOD)[:4]])] ^= True
BAD = RNG.random((1, IMAGES)) < 0.5
A, B = Column("photos", "all labels", "lbfgs"), Column("digits", "5-shot", "knn")


def scored(correct, **changes):
    return replace(
        RESULT,
        accuracy=100 * correct.mean(),
        images=correct.shape[1],
        correct=pack_correct(correct),
        seeds=list(range(len(correct))) if len(correct) > 1 else [],
        deviation=None,
        **changes,
    )


def comparison():
    return Comparison(
        ["good", "close", "bad"],
        {
            A: {"good": scored(GOOD), "close": scored(CLOSE), "bad": scored(BAD)},
            B: {"good": scored(BAD), "bad": scored(GOOD)},
        },
    )


def cells(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


@pytest.mark.parametrize("shape", [(1, 7), (3, 5), (2, 16)])
def test_which_images_were_correct_is_kept_bit_for_bit(shape):
    correct = np.random.default_rng(1).random(shape) < 0.5
    assert np.array_equal(unpack_correct(pack_correct(correct), *shape), correct)
    with pytest.raises(ValueError, match="bytes are not the 999 images"):
        unpack_correct(pack_correct(correct), 1, 999)
    line = scored(correct)
    np.testing.assert_allclose(line.per_image(), correct.mean(0))
    with pytest.raises(ValueError, match="does not say which images"):
        replace(line, correct="").per_image()


def test_the_best_is_bold_and_what_is_within_noise_of_it_is_marked():
    rows = cells(comparison().table())
    assert rows[0] == ["encoder", "photos linear", "digits 5-shot kNN"]
    best, near = f"{100 * GOOD.mean():.2f}", f"{100 * CLOSE.mean():.2f}"
    assert [row[1] for row in rows[2:]] == [f"**{best}**", f"{near} ~", f"{100 * BAD.mean():.2f}"]
    assert [row[2] for row in rows[2:]] == [f"{100 * BAD.mean():.2f}", "", f"**{best}**"]


def test_differences_are_paired_and_of_the_same_images_alone():
    expected = paired_difference(GOOD[0], BAD[0])
    example = comparison()
    assert example.difference(A, "good", "bad") == expected
    rows = cells(example.differences())
    assert rows[0][0] == "good minus"
    assert rows[3] == ["bad", f"{expected.mean:+.1f} [{expected.low:.1f}, {expected.high:.1f}]", rows[3][2]]
    assert rows[3][2].startswith("-")
    assert rows[2][2] == ""  # the column lacks the encoder
    for changes in ({"data_fingerprint": "another"}, {"split": "holdout"}):
        assert (
            Comparison(["a", "b"], {A: {"a": scored(GOOD), "b": scored(BAD, **changes)}}).difference(A, "a", "b")
            is None
        )


def test_ranks_are_means_over_data_sets_of_the_encoders_that_have_all():
    columns = [Column(data, "all labels", "lbfgs") for data in ("one", "two", "three")]
    accuracies = {"a": [90.0, 90.0, 90.0], "b": [80.0, 95.0, 80.0], "c": [70.0, 70.0, 80.0]}
    results = {
        column: {name: replace(RESULT, accuracy=of[i]) for name, of in accuracies.items()}
        for i, column in enumerate(columns)
    }
    ((ranks, count),) = Comparison("abc", results).mean_ranks().values()
    assert count == 3
    assert ranks == pytest.approx({"a": 4 / 3, "b": (2 + 1 + 2.5) / 3, "c": (3 + 3 + 2.5) / 3})
    rows = cells(Comparison("abc", results).rank_table())
    assert [row[1] for row in rows[2:]] == ["1.33", "1.83", "2.83", f"{critical_difference(3, 3):.2f}"]
    del results[columns[1]]["b"]
    ((ranks, _),) = Comparison("abc", results).mean_ranks().values()
    assert set(ranks) == {"a", "c"}


def test_values_other_than_right_and_wrong_are_kept_and_compared():
    values = np.random.default_rng(2).random((2, IMAGES))
    values[1] = np.clip(values[0] + 0.1, 0, 1)
    packed = pack_values(values[0])
    assert np.abs(unpack_values(packed, IMAGES) - values[0]).max() < 1e-5
    assert unpack_values(pack_values([0, 1, 0.5]), 3)[:2].tolist() == [0, 1]
    with pytest.raises(ValueError, match="400 values are not those of 7 images"):
        unpack_values(packed, 7)
    column = Column("photos", "all labels", "retrieval")
    results = {
        name: replace(
            RESULT,
            protocol="retrieval",
            measure="mAP",
            accuracy=100 * v.mean(),
            images=IMAGES,
            values=pack_values(v),
            further={"recall@1": 50.0},
            seeds=[],
            deviation=None,
        )
        for name, v in zip("ab", values, strict=True)
    }
    both = Comparison(["a", "b"], {column: results})
    difference = both.difference(column, "b", "a")
    assert difference.mean == pytest.approx(100 * (values[1] - values[0]).mean(), abs=1e-2)
    assert difference.low > 0
    assert cells(both.table())[0][1] == "retrieval mAP"  # one data set: no head has its name
    (further,) = both.further_tables()
    assert cells(further)[0] == ["retrieval mAP", "recall@1"]
    assert cells(further)[2] == ["a", "50.0"]
    assert comparison().further_tables() == []
