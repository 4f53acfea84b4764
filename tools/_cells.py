"""Running the cells of an ablation: each is a pretraining, a probe and pictures, in processes of their own."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _cli import user_cache
from _overrides import argument
from _plan import Planned
from _rows import Place
from _scores import place_of, warned
from _session import Session, commit
from _spent import hours
from _strips import INDEX

from ldae.engine.run import RunFolder
from ldae.engine.signals import StopFlag
from ldae.errors import Fault, Interrupted, OutputError
from ldae.export import TOKENIZER_FILE
from ldae.files import json_hash, read_sealed_json
from linear_probe.results import Result, read_results
from linear_probe.rows import Row

HERE = Path(__file__).resolve().parent
HELD = "is held by another process"
LONGEST_WAIT = 20.0  # seconds between two tries of a folder that another process holds
PLACEHOLDERS = {"data.root": "DIR", "partner.root": "DIR", "data.cache": "CACHE", "out": "RUN", "run": "RUN"}
BARE = re.compile(r"[\w@%+=:,./\[\]-]+")  # what bash takes as it stands, lists among it
PLACEHOLDERS |= dict.fromkeys(("mae", "cold", "site", "images", "jpegs"), "DIR")  # of tools/bench.py


@dataclass(frozen=True)
class Machine:
    """What cells run on.

    Attributes:
        threads: of each process.
        device: as pretraining's.
        stop: the flag that signals set.
    """

    threads: int
    device: str
    stop: StopFlag

    @property
    def words(self) -> list[str]:
        return [f"runtime.threads={self.threads}", "runtime.progress=false", f"device={self.device}"]


class Runner:
    """Runs cells and leaves their records behind.

    Args:
        place: the ablation's folder.
        budget: name of the length of pretraining.
        machine: what they run on.
    """

    def __init__(self, place: Place, budget: str, machine: Machine):
        self.place, self.budget, self.machine = place, budget, machine
        self.training: dict[str, threading.Lock] = {}  # a tokenizer is trained once: others that want it wait
        self.guard = threading.Lock()
        self.scorable: set[str] = set()  # data sets, by their keys, that can be scored

    def run(self, job: Sequence[Planned]) -> Iterator[tuple[Planned, Row | Fault]]:
        """Cells that share one pretraining, one after another: each with its row, or with what went wrong.

        Raises:
            Interrupted: a signal came; what was begun is saved.
        """
        first, run = job[0], self.place.run(job[0])
        try:
            self._check_labels(first)
            self._pretrained(first, run)
        except Interrupted:
            raise
        except Fault as fault:
            yield from ((planned, fault) for planned in job)
            return
        for planned in job:
            try:
                yield planned, self._finished(planned, run)
            except Interrupted:
                raise
            except Fault as fault:
                yield planned, fault

    def _check_labels(self, planned: Planned) -> None:
        """Read the labels of a cell's data, each data set once, before hours of training.

        Raises:
            DataError: they leave a probe nothing to score.
        """
        key = json_hash(planned.config["data"])
        with self.guard:
            if key in self.scorable:
                return
            session = Session({**planned.config, "runtime": {"threads": 0, "progress": False}})
            session.stop = self.machine.stop
            try:
                splits = session.splits()
            except Interrupted:
                raise
            except Fault:
                return  # pretraining ends with it, in the cell's log
            train, holdout, test = (images.own_labels for images in (splits.train, splits.holdout, splits.test))
            warned(place_of(planned.config["data"]), train, holdout, test, splits.classes)
            self.scorable.add(key)

    def _pretrained(self, planned: Planned, run: Path) -> None:
        words = [*planned.words, argument("out", run), *self.machine.words]
        if planned.tokenizer_key is None or (run / TOKENIZER_FILE).exists():
            self._call("pretrain.py", words, planned)
            return
        with self.guard:
            lock = self.training.setdefault(planned.tokenizer_key, threading.Lock())
        with contextlib.ExitStack() as held:
            held.enter_context(lock)

            def look() -> None:
                if (run / TOKENIZER_FILE).exists():
                    held.close()

            self._call("pretrain.py", words, planned, look)

    def _finished(self, planned: Planned, run: Path) -> Row:
        """Probes a pretrained cell, draws its pictures, leaves its record."""
        cell = planned.cell
        folder = run / f"probe-{cell.grid}-{cell.name}"
        floors = f"floors={str(cell.floors).lower()}"
        words = [argument("run", run), argument("out", folder), floors, *planned.probe, *self.machine.words]
        self._call("probe.py", words, planned)
        written = max(folder.glob("results*.jsonl"), key=lambda path: path.stat().st_mtime)  # of the split asked for
        found = [self._named(r, cell.name) for r in read_results(written)]
        drawn = self.place.pictures(planned)
        if not (drawn / INDEX).exists():
            drawn.parent.mkdir(parents=True, exist_ok=True)
            self._call("_strips.py", [f"run={run}", f"out={drawn}"], planned)
        row = self._row(planned, run, [r for r in found if r.checkpoint != "none"], drawn)
        self.place.keep(planned, row, [r for r in found if r.checkpoint == "none"])
        shutil.rmtree(folder / "features", ignore_errors=True)  # as large as they are quickly read again
        return row

    @staticmethod
    def _named(result: Result, cell: str) -> Result:
        """A result as it is told among other cells'."""
        encoder = result.encoder.replace("the same network", f"the network of {cell}")
        return replace(result, encoder=encoder, command=told(result.command))

    def _row(self, planned: Planned, run: Path, results: Sequence[Result], drawn: Path) -> Row:
        cell = planned.cell
        spent, unit = hours(run, user_cache(planned.config["data"].get("cache")), self.machine.device)
        index = read_sealed_json(drawn / INDEX)
        return Row(
            grid=cell.grid,
            cell=cell.name,
            axes=dict(cell.axes),
            results=results,
            paper=cell.paper,
            paper_source=cell.paper_source,
            budget=self.budget,
            images=planned.images,
            hours=spent,
            unit=unit,
            command=told(shlex.join(["python", "tools/pretrain.py", *planned.words, f"out={run}"])),
            commit=commit(),
            pictures={what: (drawn / file).relative_to(self.place.out).as_posix() for what, file in index.items()},
        )

    def _call(self, tool: str, words: Sequence[str], planned: Planned, look: Callable[[], None] = lambda: None) -> None:
        """Runs a tool to its good end, and looks now and then. A folder that another process holds is waited for.

        Raises:
            Interrupted: a signal came.
            Fault: it failed; the message and the exit code are the tool's.
        """
        wait = 1.0
        while True:
            self.machine.stop.poll()
            code, message = run_child([str(HERE / tool), *words], self.place.log(planned), self.machine.stop, look)
            if self.machine.stop.asked:
                self.machine.stop.poll()
            if not code:
                return
            if code != OutputError.code or HELD not in message:
                raise failed(tool, code, message)
            until, wait = time.monotonic() + wait, min(LONGEST_WAIT, 2 * wait)
            while time.monotonic() < until:
                self.machine.stop.poll()
                time.sleep(0.2)


def run_child(words: Sequence[str], log: Path, stop: StopFlag, look: Callable[[], None]) -> tuple[int, str]:
    """Runs Python on words; what it says is added to a log. A signal is passed on to it.

    Returns:
        The exit code, and its last line that says what went wrong.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"$ {told(shlex.join(['python', *words]))}\n")
        file.flush()
        began = file.tell()
        child = subprocess.Popen([sys.executable, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        asked = False
        while child.poll() is None:
            look()
            if stop.asked and not asked:
                child.terminate()  # it saves what it has
                asked = True
            try:
                child.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
    return child.returncode, last_error(log, began)


def last_error(log: Path, start: int = 0) -> str:
    """The last line from a place of a log on that says what went wrong; empty if there is none."""
    if not log.exists():
        return ""
    with open(log, encoding="utf-8", errors="replace") as file:
        file.seek(start)
        lines = [line.strip() for line in file if line.startswith("error: ")]
    return lines[-1].removeprefix("error: ") if lines else ""


def failed(tool: str, code: int, message: str) -> Fault:
    """What a tool's bad end is told as."""
    how = f"ended by signal {-code}" if code < 0 else f"exit {code}"
    fault = Fault(f"{tool} {how}" + (f": {message}" if message else ""))
    fault.code = code if code > 0 else Fault.code
    return fault


def told(command: str) -> str:
    """A command without the places of one machine: placeholders for data, runs and caches. Quoted for bash."""
    words = []
    for word in shlex.split(command):
        key, equals, _ = word.partition("=")
        if equals and key in PLACEHOLDERS:
            word = f"{key}={PLACEHOLDERS[key]}"
        elif not equals and word.endswith(".py"):
            word = f"tools/{Path(word).name}"
        words.append(word)
    return " ".join(word if BARE.fullmatch(word) else shlex.quote(word) for word in words)


def begun(place: Place, planned: Planned) -> int:
    """Steps that a cell's pretraining has made."""
    return int(RunFolder(place.run(planned)).status().get("step", 0))


def jobs_of(plans: Sequence[Planned]) -> list[list[Planned]]:
    """Cells by the pretraining that they share, in order."""
    found: dict[str, list[Planned]] = {}
    for planned in plans:
        found.setdefault(planned.run_key, []).append(planned)
    return list(found.values())


def unhindered(jobs: Sequence[list[Planned]]) -> list[list[Planned]]:
    """Jobs with those last whose tokenizer an earlier one trains: nobody waits for it beside idle cores."""
    seen: set[str] = set()
    first: list[list[Planned]] = []
    later: list[list[Planned]] = []
    for job in jobs:
        key = job[0].tokenizer_key
        (later if key in seen else first).append(job)
        seen.add(key or "")
    return [*first, *later]


def sentence(planned: Planned, row: Row, seconds: float) -> str:
    """A finished cell in a line."""
    figures: list[Any] = [f"{r.protocol} {r.accuracy:.2f}" for r in row.results]
    if row.paper is not None:
        figures.append(f"paper {row.paper:g}")
    spent = f"{row.hours:.3g} {row.unit}-hours" + (f", {seconds / 60:.1f} min here" if seconds else "")
    return f"{planned.cell.name}: {', '.join(figures)} ({spent})"
