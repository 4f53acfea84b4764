"""Runs that are disturbed, and what is left of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

from helpers import ENVIRONMENT, command, losses, run, weights


def same(a, b):
    """Return whether two runs have the same losses and the same last tensors, bit for bit."""
    return losses(a) == losses(b) and weights(a) == weights(b)


def started(*argv, limits="", **environment):
    """pretrain.py in a session of its own.

    Args:
        limits: what the shell does before, e.g. `ulimit -f 100`.
    """
    shell = f'{limits or ":"}; exec "$@"'
    env = {**os.environ, **ENVIRONMENT, **environment}
    whole = ["bash", "-c", shell, "pretrain", *command("pretrain", *argv)]
    pipe = subprocess.PIPE
    return subprocess.Popen(whole, stdout=pipe, stderr=pipe, text=True, env=env, start_new_session=True)


def ended(process, seconds=120):
    """(exit code, standard error); no traceback is among it."""
    _, err = process.communicate(timeout=seconds)
    assert "Traceback" not in err, err
    return process.returncode, err


def until(condition, process, seconds=120):
    """Wait for a condition; return whether it came before the process ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return True
        time.sleep(0.002)
    return False


def at_step(folder, step):
    """A condition: the run has written down a step from `step` on."""
    path = folder / "metrics.jsonl"
    return lambda: path.exists() and any(int(s) >= step for s in re.findall(r'^{"step": (\d+)', path.read_text(), re.M))


def signalled(folder, argv, number, step=3, group=False):
    """Starts a run, signals it once it has made some steps; its exit code."""
    process = started(f"out={folder}", *argv)
    assert until(at_step(folder, step), process), ended(process)
    (os.killpg if group else os.kill)(process.pid, number)
    return ended(process)[0]


def killed_and_rerun(folder, delays, argv):
    """Kill a run after each delay, start it again each time, and let it end; return how many kills hit a live run."""
    alive = 0
    for delay in delays:
        process = started(f"out={folder}", *argv)
        try:
            process.communicate(timeout=delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            alive += 1
    run("pretrain", f"out={folder}", *argv)
    return alive


def newest(folder):
    """The last checkpoint's folder."""
    return sorted((folder / "checkpoints").glob("step-*"))[-1]
