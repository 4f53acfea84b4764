"""Run commands in two worker processes and display their progress."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ldae.app.cli import dispatch
from ldae.core.errors import Fault, StorageError
from ldae.engine.signals import StopFlag

WORKERS = 2
REFRESH = 0.3  # seconds between two updates of the display
GRACE = 5.0  # seconds for a command to save before the next signal
LINE_EVERY = 20.0  # seconds between two lines where no bar is drawn
FIGURE = re.compile(r": [\w, -]+ \d+\.\d+ \(")  # `ldae probe` prints a line of this form for each accuracy


@dataclass(frozen=True)
class Task:
    """Call of a command.

    Attributes:
        label: name of the progress bar.
        tool: name of the command.
        argv: arguments of the command.
        result: file that a finished call writes.
        log: file for the output of the call.
        figures: number of accuracies that a probe prints; 0 for pretraining, which counts steps.
        needs: status file of the pretraining that must be finished first.
    """

    label: str
    tool: str
    argv: Sequence[str]
    result: Path
    log: Path
    figures: int = 0
    needs: Path | None = None

    def is_done(self) -> bool:
        """Return whether an earlier call finished."""
        return _is_finished_run(self.result) if self.tool == "pretrain" else self.result.exists()

    def is_ready(self) -> bool:
        """Return whether the pretraining that the call needs is finished."""
        return self.needs is None or _is_finished_run(self.needs)

    def progress(self) -> tuple[int, int]:
        """Return (done, total): steps of a pretraining, accuracies of a probe; total is 0 while it is unknown."""
        try:
            if self.tool == "probe":
                return len(FIGURE.findall(self.log.read_text())), self.figures
            folder = self.result.parent
            total = json.loads((folder / "config.json").read_text())["train"]["steps"] or 0
            with open(folder / "metrics.jsonl", "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                steps = re.findall(rb'^\{"step": (\d+),.*\}$', file.read(), flags=re.M)
            return int(steps[-1]) if steps else 0, total
        except (OSError, ValueError, KeyError):
            return 0, self.figures


def _is_finished_run(status: Path) -> bool:
    try:
        return bool(json.loads(status.read_text()).get("state") == "done")
    except (OSError, ValueError):
        return False


def run_tasks(tasks: Sequence[Task]) -> None:
    """Run unfinished tasks, two at a time, in order of their readiness.

    Raises:
        Fault: a call failed, with its exit code and its last sentence; or a signal came.
    """
    waiting = [task for task in tasks if not task.is_done()]
    running: dict[Future[tuple[int, str]], Task] = {}
    stop, display = StopFlag(), Display()
    pool = ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn"), _leave_signals)
    with stop.listening(), contextlib.closing(display):
        try:
            while waiting or running:
                stop.poll()
                while len(running) < WORKERS and (task := next((t for t in waiting if t.is_ready()), None)):
                    waiting.remove(task)
                    task.log.unlink(missing_ok=True)  # lines of an earlier call would count
                    running[pool.submit(call, task)] = task
                    display.start(task)
                ended, _ = wait(running, REFRESH, FIRST_COMPLETED)
                for task in running.values():
                    display.update(task)
                for future in ended:
                    task = running.pop(future)
                    _check(task, future)
                    display.end(task)
        finally:
            _stop_workers(running)
            pool.shutdown(cancel_futures=True)


def _stop_workers(running: Collection[Future[tuple[int, str]]]) -> None:
    """Signal the workers until their calls end: pretraining saves first."""
    while not all(future.done() for future in running):
        for child in multiprocessing.active_children():
            child.terminate()
        wait(running, GRACE)


def call(task: Task) -> tuple[int, str]:
    """Call a command in this process with its output in the log, and return (exit code, message)."""
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with open(task.log, "w", buffering=1) as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            dispatch(task.tool, task.argv)
        except Fault as fault:
            return fault.code, str(fault)
        except OSError as error:
            return StorageError.code, str(error)
        except Exception:
            traceback.print_exc()
            return Fault.code, f"internal; {task.log} has the lines to report"
    return 0, ""


def _check(task: Task, future: Future[tuple[int, str]]) -> None:
    try:
        code, message = future.result()
    except BrokenProcessPool:
        code, message = StorageError.code, "its process was killed; perhaps memory ran out. Run the same command again"
    if code:
        fault = Fault(f"{task.label}: {message}")
        fault.code = code
        raise fault


def _leave_signals() -> None:
    """Shield a worker from the terminal's signals: the main process forwards them, once."""
    os.setpgrp()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class Display:
    """Progress of tasks: a bar for each on a terminal, elsewhere a line every 20 seconds."""

    def __init__(self) -> None:
        self.on_terminal = sys.stderr.isatty()
        self.bars: dict[str, tqdm] = {}
        self.started: dict[str, float] = {}
        self.last_line: dict[str, float] = {}

    def start(self, task: Task) -> None:
        """Show a new task."""
        self.started[task.label] = self.last_line[task.label] = time.monotonic()
        if self.on_terminal:
            unit = "step" if task.tool == "pretrain" else "figure"
            self.bars[task.label] = tqdm(desc=f"{task.label:<42}", unit=unit, smoothing=0.1, position=len(self.bars))

    def update(self, task: Task) -> None:
        """Update the progress of a task."""
        done, total = task.progress()
        bar = self.bars.get(task.label)
        if bar is not None:  # tqdm has no truth value while its total is unknown
            bar.total = total or None
            bar.n = done
            bar.refresh()
        elif time.monotonic() - self.last_line[task.label] > LINE_EVERY:
            self.last_line[task.label] = time.monotonic()
            print(f"{task.label}: {done} of {total or '?'}", flush=True)

    def end(self, task: Task) -> None:
        """Show that a task is done."""
        self.update(task)
        bar = self.bars.get(task.label)
        if bar is not None:
            bar.n = bar.total or bar.n
            bar.refresh()
            return
        print(f"{task.label}: done in {time.monotonic() - self.started[task.label]:.0f} s", flush=True)

    def close(self) -> None:
        """Close the bars."""
        for bar in self.bars.values():
            bar.close()
