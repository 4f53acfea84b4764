"""Speeds side by side: contenders take turns, each in a process of its own, so that whatever slows one slows all."""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ldae.core.errors import Fault

WORKER = Path(__file__).resolve().parent / "worker.py"


def function(name: str) -> Callable[..., Any]:
    """What `module:function` names."""
    module, _, own = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), own)
    return found


@dataclass(frozen=True)
class Competitor:
    """Something that is timed.

    Attributes:
        name: as in the table.
        make: `module:function` of tools/; called with `arguments` it gives a function without arguments, which does a
            piece of work, and how much that is: FLOP, images.
        arguments: JSON values.
        environment: of its process, beside this one's.
    """

    name: str
    make: str
    arguments: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Timed:
    """What a contender took.

    Attributes:
        contender: which.
        work: of a piece.
        seconds: of a piece, a figure a round.
        peak: GiB of memory at most.
    """

    contender: Competitor
    work: float
    seconds: Sequence[float]
    peak: float

    @property
    def rate(self) -> float:
        """Work per second, the median of all rounds."""
        return self.work / statistics.median(self.seconds)

    def ratio(self, other: Timed) -> tuple[float, float, float]:
        """This rate over another's, round by round: median, lowest, highest."""
        each = [self.work / a * b / other.work for a, b in zip(self.seconds, other.seconds, strict=True)]
        return statistics.median(each), min(each), max(each)


def interleaved(competitors: Sequence[Competitor], threads: int, rounds: int, seconds: float) -> list[Timed]:
    """Times every contender in each of several rounds.

    Args:
        threads: of torch in each process.
        rounds: how often all have a turn.
        seconds: of a turn, about.

    Raises:
        Fault: a contender cannot be made or fails.
    """
    workers = [Worker(contender, threads, seconds) for contender in competitors]
    try:
        for worker in workers:
            worker.warm()  # one after the other: compiling beside each other would disturb
        for _ in range(rounds):
            for worker in workers:
                worker.turn()
        return [Timed(w.contender, w.work, w.seconds, w.peak) for w in workers]
    finally:
        for worker in workers:
            worker.close()


class Worker:
    """A contender's process."""

    def __init__(self, contender: Competitor, threads: int, seconds: float):
        self.contender, self.work, self.seconds, self.peak = contender, 0.0, list[float](), 0.0
        message = {
            "make": contender.make,
            "arguments": dict(contender.arguments),
            "threads": threads,
            "seconds": seconds,
        }
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(message)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **contender.environment},
        )

    def warm(self) -> None:
        """Make it and runs it until it is as fast as it gets."""
        self.work = self._ask("warm")["work"]

    def turn(self) -> None:
        """Times it once."""
        answer = self._ask("turn")
        self.seconds.append(answer["seconds"])
        self.peak = answer["peak"]

    def close(self) -> None:
        """Ends the process."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.process.wait()

    def _ask(self, what: str) -> dict[str, Any]:
        stdin, stdout = self._stream(self.process.stdin), self._stream(self.process.stdout)
        try:
            stdin.write(f"{what}\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # it died: there is no answer either
        line = stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"ended with {self.process.wait()}"}
        if "error" in answer:
            raise Fault(f"{self.contender.name}: {answer['error']}")
        return answer

    @staticmethod
    def _stream(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream
