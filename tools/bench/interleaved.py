"""Measure speeds in alternation, each competitor in its own process, so that disturbances affect all alike."""

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
    """Import the function of a name `module:function`."""
    module, _, attribute = name.partition(":")
    imported: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return imported


@dataclass(frozen=True)
class Competitor:
    """Implementation to time.

    Attributes:
        name: name in the table.
        make: `module:function` of tools/bench; called with `arguments`, it returns a function without arguments and the
            amount of its work (FLOP, images).
        arguments: JSON values.
        environment: additional environment variables of its process.
    """

    name: str
    make: str
    arguments: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Timed:
    """Measurements of a competitor.

    Attributes:
        competitor: the competitor.
        work: amount of work of a call.
        seconds: seconds of a call, one value per round.
        peak: peak memory in GiB.
    """

    competitor: Competitor
    work: float
    seconds: Sequence[float]
    peak: float

    @property
    def rate(self) -> float:
        """Return the work per second, the median of all rounds."""
        return self.work / statistics.median(self.seconds)

    def ratio(self, other: Timed) -> tuple[float, float, float]:
        """Return the ratio of this rate to another, per round: median, lowest, highest."""
        each = [self.work / a * b / other.work for a, b in zip(self.seconds, other.seconds, strict=True)]
        return statistics.median(each), min(each), max(each)


def interleaved(competitors: Sequence[Competitor], threads: int, rounds: int, seconds: float) -> list[Timed]:
    """Time every competitor in each of several rounds.

    Args:
        threads: CPU threads of each process.
        rounds: number of measurements of each competitor.
        seconds: approximate duration of a measurement.

    Raises:
        Fault: the first competitor cannot be built; another one that cannot be is left out, with a warning.
    """
    workers = [Worker(competitor, threads, seconds) for competitor in competitors]
    try:
        ready = [worker for worker in workers if _is_warm(worker, required=worker is workers[0])]
        for _ in range(rounds):
            for worker in ready:
                worker.time()
        return [Timed(w.competitor, w.work, w.seconds, w.peak) for w in ready]
    finally:
        for worker in workers:
            worker.close()


def _is_warm(worker: Worker, required: bool) -> bool:
    """Build a competitor, one after another, because concurrent compilation slows both; return whether it can be."""
    try:
        worker.warm()
    except Fault as fault:
        if required:
            raise
        print(f"warning: {fault}; it is left out", file=sys.stderr)
        return False
    return True


class Worker:
    """Process of a competitor."""

    def __init__(self, competitor: Competitor, threads: int, seconds: float):
        self.competitor, self.work, self.seconds, self.peak = competitor, 0.0, list[float](), 0.0
        message = {
            "make": competitor.make,
            "arguments": dict(competitor.arguments),
            "threads": threads,
            "seconds": seconds,
        }
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(message)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **competitor.environment},
        )

    def warm(self) -> None:
        """Build the competitor and run its first calls."""
        self.work = self._ask("warm")["work"]

    def time(self) -> None:
        """Time the competitor once."""
        answer = self._ask("time")
        self.seconds.append(answer["seconds"])
        self.peak = answer["peak"]

    def close(self) -> None:
        """End the process."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.process.wait()

    def _ask(self, request: str) -> dict[str, Any]:
        stdin, stdout = self._stream(self.process.stdin), self._stream(self.process.stdout)
        try:
            stdin.write(f"{request}\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # the process ended; the missing answer reports it
        line = stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"ended with {self.process.wait()}"}
        if "error" in answer:
            raise Fault(f"{self.competitor.name}: {answer['error']}")
        return answer

    @staticmethod
    def _stream(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream
