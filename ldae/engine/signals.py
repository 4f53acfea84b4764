"""Signal handling: a training stops between two steps, other work at once; a second signal ends the process."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

from ldae.core.errors import Interrupted

SECOND = 1.0  # seconds after which a repeated signal counts as a second one; launchers and shells send the first twice


class SignalArrived(KeyboardInterrupt):
    """Exception that leaves a block when a signal arrives; not an Exception, so that error handlers do not catch it."""


def handled_signals() -> list[signal.Signals]:
    """Return the signals with a handler: SIGHUP (the terminal is closed) unless it is ignored, as under nohup."""
    signals = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    hangup = getattr(signal, "SIGHUP", None)
    return signals if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN else [*signals, hangup]


class StopFlag:
    """Flag that a signal sets to stop the run.

    Attributes:
        signal_name: name of the signal, or an empty string.
    """

    signal_name = ""

    def __init__(self) -> None:
        self._first: float | None = None  # time of the first signal
        self._prompt = False

    def poll(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        if self.signal_name:
            raise Interrupted(f"stopped by {self.signal_name}; run the same command again to go on")

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopFlag]:
        """Handle signals in the block: the first sets the flag, another after a second or more ends the process.

        The process then ends like a killed one, with the exit code 128 + the signal's number. It saves nothing, but
        loses no earlier checkpoint, since files are written atomically.
        """
        before = {number: signal.signal(number, self._note) for number in handled_signals()}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise Interrupted as soon as a signal arrives in the block.

        In nested blocks the innermost of `at_once` and `deferred` is valid.
        """
        before, self._prompt = self._prompt, True
        try:
            self.poll()
            yield
        except SignalArrived:
            self.poll()
            raise  # unreachable: the flag is set before SignalArrived is raised
        finally:
            self._prompt = before

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Leave signals in the block to `poll`, so that a training can save its state first."""
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
        self._first, self.signal_name = now, name
        if self._prompt:
            raise SignalArrived(name)
