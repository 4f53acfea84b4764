"""Every mistake in a config is answered with exit code 2 and a sentence that names the key, before data are read."""

from __future__ import annotations

import itertools

import pytest
from mistakes import mistakes


def failures(in_process, out, first, count):
    """Describe those of `count` mistakes from `first` on that are not answered so."""
    failed = []
    for mistake in itertools.islice(mistakes(), first, first + count):
        code, message = in_process("pretrain", *mistake.argv, f"out={out}")
        if code != 2 or mistake.key not in message or len(message.splitlines()) != 1:
            failed.append(f"{mistake.experiment} {mistake.word} ({mistake.kind}): {code} {message}")
    return failed


TITLE = "mistakes generated from the configs: misspelt, of another type, out of range, no choice"


@pytest.mark.case("20, 21", TITLE)
def test_some_mistakes_are_answered(in_process, tmp_path, tries):
    assert failures(in_process, tmp_path / "run", 0, 20) == []
    tries(20)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.case("20, 21", TITLE)
def test_the_other_mistakes_are_answered(in_process, tmp_path, tries):
    count = sum(1 for _ in mistakes()) - 20
    assert failures(in_process, tmp_path / "run", 20, count) == []
    assert count > 2000
    tries(count)


def test_the_mistakes_are_of_every_kind():
    kinds = [mistake.kind for mistake in itertools.islice(mistakes(), 300)]
    assert set(kinds) == {"misspelt", "type", "range", "choice"}
