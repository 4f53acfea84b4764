"""Run one competitor in a process (see interleaved.py): answer `warm` and `time` by a line of JSON each."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from interleaved import function

from ldae.engine.runtime import peak_gib, set_threads

WARM = 3  # calls before the first timed one


class Work:
    """Timed call of a competitor.

    Args:
        message: `make`, `arguments`, `threads` and `seconds` of interleaved.Worker.
    """

    def __init__(self, message: Mapping[str, Any]):
        set_threads(message["threads"])
        self.call: Callable[[], object]
        self.call, self.amount = function(message["make"])(**message["arguments"])
        for _ in range(WARM):
            once = self.timed(1)
        self.count = max(1, round(message["seconds"] / once))  # calls of a measurement

    def timed(self, count: int) -> float:
        """Return the mean seconds of `count` calls."""
        start = time.perf_counter()
        for _ in range(count):
            self.call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / count


def main(message: str) -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps output of the call apart from answers
    work: Work | None = None
    with contextlib.ExitStack() as at_end:
        for request in sys.stdin:
            try:
                if work is None:
                    work = Work(json.loads(message))
                    if isinstance(work.call, contextlib.AbstractContextManager):
                        at_end.enter_context(work.call)
                answer: dict[str, object] = {"work": work.amount}
                if request.strip() == "time":
                    answer = {"seconds": work.timed(work.count), "peak": peak_gib()}
            except Exception as error:
                text = str(error).strip().splitlines()
                answer = {"error": f"{type(error).__name__}: {text[0] if text else ''}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
