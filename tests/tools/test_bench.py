"""tools/bench.py: protocols within a bound on their memory."""

from __future__ import annotations

import json

import pytest

SMALL = ["features", "rows=400", "holdout=40", "queries=50", "dimensions=384", "classes=4", "epochs=1"]


def test_protocols_are_measured(in_process, tmp_path, capsys):
    assert in_process("bench", *SMALL, f"out={tmp_path}") == (0, "")
    lines = [json.loads(line) for line in (tmp_path / "bench.jsonl").read_text().splitlines()]
    knn, heads = lines
    assert (knn["protocol"], knn["whole"], heads["protocol"], heads["whole"]) == ("knn", 0, "dinov2", 12500)
    assert heads["steps"] == 1  # an epoch of one batch
    assert all(0.05 < line["peak"] < 8 and line["tried"] > 0 for line in lines)
    assert knn["accuracy"] > 40  # of four classes; it learned from what was drawn
    assert "knn: read" in capsys.readouterr().out


def test_memory_that_does_not_do_is_told(in_process, tmp_path):
    words = [*SMALL, "protocols=[knn]", "rows=300000", "dimensions=256", f"out={tmp_path}"]
    code, message = in_process("bench", *words, "memory=0.25")
    assert code == 70
    assert "memory=0.25 GiB" in message
    assert not (tmp_path / "bench.jsonl").exists()


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("protocols=[knm]", "protocols='knm' is none of: lbfgs, knn"),
        ("holdout=400", "holdout=400 is not less than rows=400"),
        ("memory=0", "memory=0.0 is not above 0"),
        ("rows=0", "rows"),
    ],
)
def test_what_cannot_be_measured_is_refused(in_process, tmp_path, word, sentence):
    code, message = in_process("bench", *SMALL, word, f"out={tmp_path}")
    assert code == 2
    assert sentence in message


def test_the_first_word_names_what_is_measured(in_process):
    assert in_process("bench")[0] == 2
    assert "features" in in_process("bench", "rows=3")[1]
