"""Signals set a flag; the loops poll it. Nothing is interrupted in the middle."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from ldae.errors import Interrupted

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopFlag:
    """Whether a signal has asked the run to stop.

    Attributes:
        asked: name of the signal, or an empty string.
    """

    asked = ""

    def poll(self) -> None:
        """Raises Interrupted once a signal has come."""
        if self.asked:
            raise Interrupted(f"stopped by {self.asked}; run the same command again to go on")

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopFlag]:
        """Answers SIGTERM, SIGINT and SIGUSR1 with the flag while the block lasts."""

        def note(number: int, frame: FrameType | None) -> None:
            self.asked = signal.Signals(number).name

        before = {number: signal.signal(number, note) for number in HANDLED}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
