"""Commands as processes without the seconds of imports: a server imports the project once and forks for each of them.

A fork has what a process has that starts anew: its own memory, signals, standard streams and exit code. It shares what
is decided by an import alone, and it ends without taking the interpreter apart; a test of imports, of environment
variables that they read, or of that end starts a process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

IMPORTED = ("PIL.JpegImagePlugin", "PIL.PngImagePlugin", "sklearn.datasets", "torch.utils.tensorboard")  # on first use


@functools.cache
def _server():
    """Start the server of this process; return the connection to it. It ends with the connection."""
    ours, theirs = socket.socketpair()
    with theirs:
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        argv = [sys.executable, __file__, str(theirs.fileno())]
        process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
    connection = Connection(ours.detach())

    def end():
        with contextlib.suppress(OSError):
            connection.send(None)  # to close the connection does not do while a fork of this process holds a copy
        connection.close()
        process.wait()

    atexit.register(end)
    return connection


def run_forked(argv, environments, seconds):
    """Run `python -m ldae ARGV` in one process for each environment, all at once; return when all have ended.

    Returns:
        For each of them its exit code (negative: of a signal), standard output and standard error. Once one fails, the
        others are killed.

    Raises:
        TimeoutExpired: they took longer; they are killed.
    """
    connection = _server()
    with tempfile.TemporaryDirectory() as folder:
        connection.send((list(map(str, argv)), environments, os.getcwd(), folder))
        pids = connection.recv()
        late = not connection.poll(seconds)
        for pid in pids if late else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        codes = connection.recv()
        if late:
            raise subprocess.TimeoutExpired(argv, seconds)
        texts = [[Path(folder, f"{i}.{end}").read_text() for end in ("out", "err")] for i in range(len(pids))]
    return [(codes[pid], *text) for pid, text in zip(pids, texts, strict=True)]


def _ended(pids):
    """Wait for processes and return their exit codes; kill the others once one has failed."""
    codes = {}
    while len(codes) < len(pids):
        pid, state = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(state)
        for other in pids if codes[pid] else ():
            if other not in codes:
                os.kill(other, signal.SIGKILL)
    return codes


def _serve(connection):
    """Fork for each request of `run_forked`; return the arguments in a fork, None in the server at its end."""
    with contextlib.suppress(EOFError):
        while (request := connection.recv()) is not None:
            argv, environments, cwd, folder = request
            pids = []
            for i, environment in enumerate(environments):
                if (pid := os.fork()) == 0:
                    connection.close()
                    for descriptor, end in ((1, "out"), (2, "err")):
                        file = os.open(Path(folder, f"{i}.{end}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                        os.dup2(file, descriptor)
                    os.environ.clear()
                    os.environ.update(environment)
                    os.chdir(cwd)
                    np.random.seed()  # as in a process that starts: from the system
                    return argv
                pids.append(pid)
            connection.send(pids)
            connection.send(_ended(pids))
    return None


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as `python -m` does
    from ldae.app.cli import COMMANDS

    for name in (*IMPORTED, *(command.module for command in COMMANDS.values())):
        importlib.import_module(name)
    gc.freeze()  # a collection in a fork would copy the memory of all modules
    if (arguments := _serve(Connection(int(sys.argv[1])))) is None:
        os._exit(0)
    sys.argv[1:] = arguments
    try:
        runpy.run_module("ldae", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(end.code or 0)  # to take all modules apart takes two seconds
