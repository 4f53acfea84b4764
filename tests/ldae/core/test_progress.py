"""Progress of loops: the times and the text of lines, and the units that count for the speed."""

from __future__ import annotations

import itertools
import re

import pytest

from ldae.core.progress import Progress, duration


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


def loop(seconds, total, done=0, mode="lines", pauses=(), **settings):
    """A loop whose units take `seconds(k)` each, with a pause of an hour before some."""
    clock = Clock()
    progress = Progress(mode, total, done, clock=clock, **settings)
    for k in range(done, total):
        if k in pauses:
            with progress.paused():
                clock.now += 3600
        clock.now += seconds(k)
        progress.advance()
        yield progress
    progress.close()


def lines(capsys, *arguments, **settings):
    for _ in loop(*arguments, **settings):
        pass
    return capsys.readouterr().err.splitlines()


def test_the_first_unit_and_pauses_count_for_no_speed(capsys):
    printed = lines(capsys, lambda k: 600 if k == 0 else 0.5, 100, images=32, pauses=[50])
    assert all("64 images/s" in line for line in printed[1:])
    assert next(line for line in printed if "step 40 of" in line).endswith("30 s left")
    assert next(line for line in printed if "step 60 of" in line).endswith("20 s left")


def test_lines_come_at_tenths_and_every_thirty_seconds(capsys):
    steps = [int(re.search(r"step (\d+) of", line)[1]) for line in lines(capsys, lambda k: 5, 100)]
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert set(range(10, 101, 10)) <= set(steps)
    assert max(gaps) <= 30 / 5


def test_lines_of_a_long_run_come_more_seldom(capsys):
    assert 100 < len(lines(capsys, lambda k: 1, 100_000)) < 300  # of a day


def test_what_takes_no_time_says_nothing(capsys):
    assert lines(capsys, lambda k: 0.01, 100) == []


def test_a_resumed_loop_goes_on_from_where_it_was(capsys):
    printed = lines(capsys, lambda k: 1, 100, done=60, title="tokenizer")
    assert printed[-1].startswith("tokenizer: step 100 of 100 (100 %)")
    assert not any("step 59 " in line for line in printed)


def test_values_appear_in_every_line(capsys):
    for progress in loop(lambda k: 5, 100):
        progress.show("knn", "kNN 30 % (chance 10)")
        progress.show("loss", "loss 0.5", first=True)
    assert "(6 %), loss 0.5, kNN 30 % (chance 10), 0.2 steps/s, 7 min 50 s left" in capsys.readouterr().err


def test_a_bar_counts_units_and_leaves_pauses_out(capsys):
    for progress in loop(lambda k: 1, 50, mode="bar", pauses=[25], images=32):
        bar = progress.bar
    assert (bar.n, bar.total, bar.unit) == (50, 50, "step")
    assert "50/50" in capsys.readouterr().err


def test_off_is_silent(capsys):
    assert lines(capsys, lambda k: 5, 100, mode="off") == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (245, "4 min 05 s"), (7500, "2 h 05 min"), (86400 * 3 + 4 * 3600, "3 days 04 h")],
)
def test_durations_as_text(seconds, text):
    assert duration(seconds) == text


def test_a_value_that_is_shown_first_is_the_newest():
    progress = Progress("off", total=3)
    progress.show("accuracy", "kNN 40")
    for loss in ("loss 0.9", "loss 0.5"):
        progress.show("loss", loss, first=True)
    assert list(progress.values.values()) == ["loss 0.5", "kNN 40"]
