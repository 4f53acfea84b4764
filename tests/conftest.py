"""Fixtures of all tests."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from helpers import complete

from ldae.app.cli import find
from ldae.app.compose import compose, resolved
from ldae.app.provenance import commit
from ldae.engine.runtime import describe_hardware
from linear_probe.results import markdown

TESTS = Path(__file__).parent

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Put the files first that take longest: left for the end, one of them keeps one worker busy alone.

    Those are the files with slow tests, then those whose tests start commands.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item):
        of_commands = (TESTS / "ldae" / "app", TESTS / "faults", TESTS / "tools")
        starts_commands = item.path.parent == TESTS or any(map(item.path.is_relative_to, of_commands))
        return item.path not in slow, not starts_commands

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache of the tests' own, for this process and those it starts."""
    folder = tmp_path_factory.getbasetemp().parent / "ldae-cache"
    os.environ["LDAE_CACHE"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def no_child_outlives_the_test():
    """Processes that a test leaves behind would fail another one that counts its own."""
    yield
    assert not multiprocessing.active_children()


@pytest.fixture
def config():
    """Composes the config of a tool: config("pretrain", "seed=1", ...)."""
    return lambda root, *argv: resolved(compose(root, list(argv)))


@pytest.fixture
def in_process():
    """Run a command in this process, which starts faster: (tool, arguments) -> (exit code, message)."""
    from ldae.app.cli import as_typed
    from ldae.core.errors import Fault

    def call(tool, *argv):
        try:
            module = importlib.import_module("bench") if tool == "bench" else find(tool.replace("_", "-")).load()
            module.main(complete(tool, argv))
        except Fault as fault:
            return fault.code, str(as_typed(fault))
        return 0, ""

    return call


@pytest.fixture(scope="session")
def real_data():
    """The folder of unpacked real data sets ($LDAE_DATA: cifar10/, imagenet-samples/, ...); skips where absent."""
    folder = os.environ.get("LDAE_DATA")
    if not folder or not Path(folder, "cifar10").is_dir():
        pytest.skip("set LDAE_DATA=DIR with DIR/cifar10 to run the tests on real images")
    return Path(folder)


@pytest.fixture
def tries(record_property):
    """tries(count, lost=0): how often a test of a fault tried it, and how often it was not survived."""

    def note(count, lost=0):
        record_property("tries", count)
        record_property("lost", lost)

    return note


@pytest.fixture(autouse=True)
def _case(request, record_property):
    """Record the number and title under which a test marked `case(number, title)` is in the table of faults."""
    if marker := request.node.get_closest_marker("case"):
        record_property("case", list(marker.args))


def faults(reports):
    """A record for each fault; tests of one fault are summed."""
    records = {}
    for verdict, some in reports.items():
        for report in some:
            known = dict(getattr(report, "user_properties", ()))
            if "case" not in known:
                continue
            number, title = known["case"]
            tried = known.get("tries", 0 if verdict == "skipped" else 1)
            lost = known.get("lost", tried if verdict in ("failed", "error") else 0)
            record = {"case": number, "what": title, "tries": 0, "lost": 0, "verdict": "passed", "seconds": 0.0}
            record = records.setdefault((number, title), record)
            record["tries"] += tried
            record["lost"] += lost
            record["seconds"] = round(record["seconds"] + report.duration, 1)
            if verdict != "passed" and record["verdict"] != "failed":
                record["verdict"] = "failed" if verdict == "error" else verdict
    return sorted(records.values(), key=lambda r: ([int(n) for n in re.findall(r"\d+", r["case"])] or [99], r["what"]))


def pytest_terminal_summary(terminalreporter):
    """The table of faults, where $LDAE_FAULTS names the file that it is to be written to."""
    requested = ("passed", "failed", "error", "skipped")
    records = faults({key: terminalreporter.stats.get(key, []) for key in requested})
    if not records or "LDAE_FAULTS" not in os.environ:
        return
    columns = ["case", "what", "tries", "lost", "verdict", "seconds"]
    lines = [columns, *([str(record[c]) for c in columns] for record in records)]
    terminalreporter.write_line(markdown(lines))
    path = Path(os.environ["LDAE_FAULTS"])
    known = {"command": "make test-faults", "commit": commit(), "hardware": describe_hardware()}
    path.write_text(json.dumps({**known, "cases": records}, indent=1) + "\n")


@pytest.fixture
def terminal():
    """SIGHUP as on a terminal, for a test and the processes that it starts; under nohup both inherit it as ignored."""
    if not hasattr(signal, "SIGHUP"):
        yield
        return
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, inherited)
