"""Progress of a loop: a bar on a terminal, lines elsewhere."""

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
INTERVAL_FRACTION = 1 / 40  # minimum interval between lines as a fraction of the elapsed time, for long runs
TIME_CONSTANT = 60.0  # seconds after which a measurement has weight 1/e in the speed
MIN_INTERVAL = 3.0  # seconds between lines at tenths of the work


class Progress:
    """Report the progress of a loop of known length on standard error.

    A line has the position, the latest values set by `show`, the speed and the time left. Lines are printed every 30
    seconds (in runs of more than 20 minutes, every 40th of the elapsed time) and at each tenth of the work, at most
    one in 3 seconds. The speed leaves out the first `start_up` units and the blocks under `paused`.

    Args:
        mode: bar, lines, or off.
        total: units of the whole loop.
        done: units done by earlier processes.
        title: first word of each line.
        unit: name of a unit.
        images: number of images in a unit; 0 gives the speed in units.
        start_up: first units that the speed leaves out.
        clock: returns monotonic seconds.
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
        self.values: dict[str, str] = {}
        self.bar = tqdm(total=total, initial=done, desc=title or None, unit=unit, disable=mode != "bar", smoothing=0.05)
        self.began = self.printed_at = clock()
        self.printed = self.first = done
        self.measured = self.seconds = 0.0  # exponentially weighted sums of units and seconds
        self.since: float | None = None  # clock at the start of the current unit

    def show(self, name: str, text: str, first: bool = False) -> None:
        """Set the text of a named value in the bar and in the next line, before all others if `first`."""
        others = {key: value for key, value in self.values.items() if key != name}
        self.values = {name: text, **others} if first else {**self.values, name: text}

    def advance(self, count: int = 1) -> None:
        """Count units as done."""
        self.done += count
        now = self.clock()
        if self.done - self.first <= self.start_up:
            self.bar.n = self.bar.initial = self.done
            self.bar.unpause()
        else:
            seconds = now - self.since if self.since is not None else 0.0
            decay = math.exp(-seconds / TIME_CONSTANT)
            self.measured, self.seconds = decay * self.measured + count, decay * self.seconds + seconds
            if self.mode == "bar":
                speed = [f"{self.speed():.0f} img/s"] if self.images else []
                short = (text.partition(" (")[0] for text in self.values.values())
                self.bar.set_postfix_str(", ".join([*short, *speed]), refresh=False)
            self.bar.update(count)
        self.since = now
        if self.mode == "lines" and self._is_due(now):
            self._print(now)

    def _print(self, now: float) -> None:
        print(self.line(), file=sys.stderr, flush=True)
        self.printed, self.printed_at = self.done, now

    def _is_due(self, now: float) -> bool:
        waited = now - self.printed_at
        passed_tenth = 10 * self.done // max(1, self.total) > 10 * self.printed // max(1, self.total)
        interval = max(INTERVAL, INTERVAL_FRACTION * (now - self.began))
        return (waited >= interval or (passed_tenth and waited >= MIN_INTERVAL)) and self.done < self.total

    def speed(self) -> float:
        """Return the recent units per second, or images per second if `images` is set; 0 before a measurement."""
        return self.measured * (self.images or 1) / self.seconds if self.seconds else 0.0

    def line(self) -> str:
        """Return a line with position, values, speed and time left."""
        percent = 100 * self.done // max(1, self.total)
        parts = [f"{self.unit} {self.done:,} of {self.total:,} ({percent} %)", *self.values.values()]
        if speed := self.speed():
            parts.append(f"{speed:.3g} {'images' if self.images else self.unit + 's'}/s")
            if self.done < self.total:
                parts.append(f"{duration((self.total - self.done) * (self.images or 1) / speed)} left")
        return (f"{self.title}: " if self.title else "") + ", ".join(parts)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the duration of the block out of the speed and of the time left."""
        try:
            yield
        finally:
            self.since = self.clock()
            self.bar.unpause()

    def track(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items of a loop and count each as a unit once the loop takes the next one."""
        try:
            for item in items:
                yield item
                self.advance()
        finally:
            self.close()

    def close(self) -> None:
        """Close the bar, or print the last line if the loop lasted at least 3 seconds."""
        self.bar.close()
        now = self.clock()
        if self.mode == "lines" and (self.printed > self.first or now - self.began >= MIN_INTERVAL):
            self._print(now)


def duration(seconds: float) -> str:
    """Return a duration as text: 45 s, 4 min 05 s, 2 h 05 min, 3 days 04 h."""
    whole = max(0, round(seconds))
    for size, step, units in ((86400, 3600, ("days", "h")), (3600, 60, ("h", "min")), (60, 1, ("min", "s"))):
        if whole >= size:
            large, small = whole // size, whole % size // step
            return f"{large} {units[0].removesuffix('s') if large == 1 else units[0]} {small:02d} {units[1]}"
    return f"{whole} s"
