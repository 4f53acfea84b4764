"""Signals: the points at which they take effect, and the end of the process at a second one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from ldae.core.errors import Interrupted
from ldae.engine.signals import SignalArrived, StopFlag

pytestmark = pytest.mark.usefixtures("terminal")


def test_under_nohup_a_hangup_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    flag = StopFlag()
    with flag.listening():
        signal.raise_signal(signal.SIGHUP)
        flag.poll()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.case("A11", "SIGTERM, SIGINT, SIGUSR1, SIGHUP outside training")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_is_answered_where_it_arrives_unless_it_is_deferred(name):
    flag, reached = StopFlag(), []
    with flag.listening():
        with pytest.raises(Interrupted, match=name):
            _decode(flag, getattr(signal, name), reached)
        with pytest.raises(Interrupted), flag.at_once():
            reached.append("begun")
    assert not reached


def _decode(flag, number, reached):
    """Raise a signal inside code that takes every error for a damaged file."""
    with flag.at_once():
        with flag.deferred():
            pass
        try:
            signal.raise_signal(number)
            reached.append("after")
        except Exception:
            reached.append("swallowed")


def test_a_deferred_signal_waits_for_the_poll():
    flag = StopFlag()
    with flag.listening(), flag.deferred():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            flag.poll()
    assert not issubclass(SignalArrived, Exception)


def test_a_signal_that_is_ignored_stays_ignored():
    """As nohup does with SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        flag = StopFlag()
        with flag.listening():
            signal.raise_signal(signal.SIGHUP)
            flag.poll()
            assert not flag.signal_name
    finally:
        signal.signal(signal.SIGHUP, before)


BUSY = """
import time
from ldae.engine.signals import StopFlag
flag = StopFlag()
with flag.listening(), flag.deferred():
    print("ready", flush=True)
    time.sleep(60)
    time.sleep(60)
"""


@pytest.mark.case("C17", "a second Ctrl-C")
def test_a_second_signal_ends_at_once_but_not_the_same_one_sent_twice():
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    time.sleep(1.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert "ended at once by a second signal, SIGINT" in process.communicate(timeout=2)[1]
    assert process.returncode == 130
