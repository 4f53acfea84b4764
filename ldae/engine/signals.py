"""Signals: training answers them between two steps, everything else where they arrive; a second one ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

from ldae.core.errors import Interrupted

SECOND = 1.0  # seconds after which another signal is a second one; launchers and shells send the first twice


class SignalArrived(KeyboardInterrupt):
    """Leave a block where a signal arrives. It is no Exception, so that no handler of errors takes it for one."""


def handled() -> list[signal.Signals]:
    """Return the signals that are answered: SIGHUP (the terminal is closed) unless it is ignored, as under nohup."""
    found = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    hangup = getattr(signal, "SIGHUP", None)
    return found if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN else [*found, hangup]


class StopFlag:
    """Whether a signal has asked the run to stop.

    Attributes:
        asked: name of the signal, or an empty string.
    """

    requested = ""

    def __init__(self) -> None:
        self._first: float | None = None  # when the first signal came
        self._prompt = False

    def poll(self) -> None:
        """Raises Interrupted once a signal has come."""
        if self.requested:
            raise Interrupted(f"stopped by {self.requested}; run the same command again to go on")

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopFlag]:
        """Answer signals in the block: the first sets the flag, one that comes a second or more later ends the process.

        That end is like a kill: nothing is saved, the exit code is 128 + the signal's number. Files are whole or absent
        at any time, so that nothing saved before is lost.
        """
        before = {number: signal.signal(number, self._note) for number in handled()}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise Interrupted where a signal arrives in the block, which has nothing to save.

        Blocks may be nested; the innermost of `at_once` and `deferred` counts.
        """
        before, self._prompt = self._prompt, True
        try:
            self.poll()
            yield
        except SignalArrived:
            self.poll()
            raise  # never: the flag is set before it is raised
        finally:
            self._prompt = before

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Leave a signal in the block to `poll`: what it does is saved first."""
        before, self._prompt = self._prompt, False
        try:
            yield
        finally:
            self._prompt = before

    def _note(self, number: int, frame: FrameType | None) -> None:
        now, name = time.monotonic(), signal.Signals(number).name
        if self._first is not None:
            if now - self._first > SECOND:
                with contextlib.suppress(OSError):
                    os.write(2, f"\nended at once by a second signal, {name}\n".encode())
                os._exit(128 + number)
            return
        self._first, self.requested = now, name
        if self._prompt:
            raise SignalArrived(name)
