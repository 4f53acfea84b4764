"""Report how far a loop is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar

from tqdm import tqdm

Mode = Literal["bar", "lines", "off"]
Item = TypeVar("Item")

INTERVAL = 30.0  # seconds between lines
LONGER = 1 / 40  # of the time so far: the interval in long runs
WINDOW = 60.0  # seconds after which work counts 1/e in the speed
SHORTEST = 3.0  # seconds between lines at tenths of the work


class Progress:
    """Report the progress of a loop of known length on standard error.

    A bar has its time left; a line has the position, the latest figures, images per second, and the time left. Lines
    come every 30 seconds (every 40th of the time so far in runs of more than 20 minutes) and at tenths of the work,
    at most one in 3 seconds. What a loop does first, and what `paused` encloses, counts for no speed.

    Args:
        mode: bar, lines, or off.
        total: units of the work.
        done: units done by earlier processes.
        title: first word of each line.
        unit: name of a unit.
        images: in a unit; 0 if speed is not in images.
        start_up: units whose time is left out of the speed.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        mode: Mode,
        total: int,
        done: int = 0,
        title: str = "",
        unit: str = "step",
        images: int = 0,
        start_up: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.mode, self.total, self.done, self.title, self.unit = mode, total, done, title, unit
        self.images, self.start_up, self.clock = images, start_up, clock
        self.figures: dict[str, str] = {}
        self.bar = tqdm(total=total, initial=done, desc=title or None, unit=unit, disable=mode != "bar", smoothing=0.05)
        self.began = self.printed_at = clock()
        self.printed = self.first = done
        self.measured = self.seconds = 0.0  # units and seconds of late, older ones with less and less weight
        self.since: float | None = None  # when the unit in progress began

    def show(self, name: str, text: str, first: bool = False) -> None:
        """Set the text of a figure in the bar and the next line, perhaps before all others."""
        self.figures = {name: text, **self.figures} if first else {**self.figures, name: text}

    def advance(self, count: int = 1) -> None:
        """Count units as done."""
        self.done += count
        now = self.clock()
        if self.done - self.first <= self.start_up:
            self.bar.n = self.bar.initial = self.done
            self.bar.unpause()
        else:
            seconds = now - self.since if self.since is not None else 0.0
            keep = math.exp(-seconds / WINDOW)
            self.measured, self.seconds = keep * self.measured + count, keep * self.seconds + seconds
            if self.mode == "bar":
                speed = [f"{self.speed():.0f} img/s"] if self.images else []
                brief = (text.partition(" (")[0] for text in self.figures.values())
                self.bar.set_postfix_str(", ".join([*brief, *speed]), refresh=False)
            self.bar.update(count)
        self.since = now
        if self.mode == "lines" and self._is_due(now):
            self._print(now)

    def _print(self, now: float) -> None:
        print(self.line(), file=sys.stderr, flush=True)
        self.printed, self.printed_at = self.done, now

    def _is_due(self, now: float) -> bool:
        waited = now - self.printed_at
        tenth = 10 * self.done // max(1, self.total) > 10 * self.printed // max(1, self.total)
        due = waited >= max(INTERVAL, LONGER * (now - self.began)) or (tenth and waited >= SHORTEST)
        return due and self.done < self.total

    def speed(self) -> float:
        """Return units (images, where a unit has some) per second, of late; 0 if none was measured."""
        return self.measured * (self.images or 1) / self.seconds if self.seconds else 0.0

    def line(self) -> str:
        """Return position, figures, speed and time left in a line."""
        share = 100 * self.done // max(1, self.total)
        parts = [f"{self.unit} {self.done:,} of {self.total:,} ({share} %)", *self.figures.values()]
        if speed := self.speed():
            parts.append(f"{speed:.3g} {'images' if self.images else self.unit + 's'}/s")
            if self.done < self.total:
                parts.append(f"{duration((self.total - self.done) * (self.images or 1) / speed)} left")
        return (f"{self.title}: " if self.title else "") + ", ".join(parts)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what the block does out of the speed and of the time left."""
        try:
            yield
        finally:
            self.since = self.clock()
            self.bar.unpause()

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items of a loop, each a unit that is done when the next is asked for."""
        try:
            for item in items:
                yield item
                self.advance()
        finally:
            self.close()

    def close(self) -> None:
        """End the bar, or print the last line, unless all was a matter of seconds."""
        self.bar.close()
        now = self.clock()
        if self.mode == "lines" and (self.printed > self.first or now - self.began >= SHORTEST):
            self._print(now)


def duration(seconds: float) -> str:
    """Return a time in words: 45 s, 4 min 05 s, 2 h 05 min, 3 days 4 h."""
    whole = max(0, round(seconds))
    for size, step, units in ((86400, 3600, ("days", "h")), (3600, 60, ("h", "min")), (60, 1, ("min", "s"))):
        if whole >= size:
            large, small = whole // size, whole % size // step
            return f"{large} {units[0].removesuffix('s') if large == 1 else units[0]} {small:02d} {units[1]}"
    return f"{whole} s"
