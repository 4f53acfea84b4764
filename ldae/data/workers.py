"""Worker processes: tasks go out, results come back in order, and a process that dies ends the work with one sentence.

Every process has a pipe of its own and no lock is shared, so that one that is killed at any moment leaves nothing
locked that another waits for. (torch's DataLoader shares a queue, and ends its workers by SIGTERM, which ours ignore.)
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from ldae.core.errors import Fault, PeerError

# forked processes share names and labels with this one; elsewhere than on Linux, system libraries do not survive a fork
METHOD = "fork" if sys.platform == "linux" else "spawn"
PIPE = 1 << 15  # bytes of tasks that a busy process is sent: they fit into any pipe, so that sending never waits
PATIENCE = 5.0  # seconds after which an idle process looks whether its parent is still there
CAUSES: dict[int, str] = {
    signal.SIGKILL: "most likely because memory ran out; lower data.workers or train.batch, or free memory",
    signal.SIGBUS: "most likely because shared memory or a disk ran full; free some, or lower data.workers",
}


def ignore_signals(*_: Any) -> None:
    """Ignore the signals that stop a run: the main process answers them, and ends its workers itself."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@dataclass
class _Worker:
    """One process and what it was given.

    Attributes:
        connection: this end of its pipe.
        unsent: pickled tasks that wait for room in the pipe.
        sizes: bytes of each task that was sent and is not answered.
    """

    process: BaseProcess
    connection: Connection
    unsent: deque[bytes] = field(default_factory=deque)
    sizes: deque[int] = field(default_factory=deque)

    def submit(self, task: Any) -> None:
        self.unsent.append(pickle.dumps(task, pickle.HIGHEST_PROTOCOL))
        self.push()

    def push(self) -> None:
        """Send what fits: an idle process reads a task of any size, a busy one may wait for its result to be read."""
        while self.unsent and (not self.sizes or sum(self.sizes) + len(self.unsent[0]) <= PIPE):
            content = self.unsent.popleft()
            self.connection.send_bytes(content)
            self.sizes.append(len(content))


class WorkerPool:
    """Processes that apply a function to tasks.

    Args:
        work: (task) -> result; both are pickled.
        workers: number of processes.
    """

    def __init__(self, work: Callable[[Any], Any], workers: int):
        self._workers: list[_Worker] = []
        _alive.add(self)
        context = multiprocessing.get_context(METHOD)
        for _ in range(workers):
            ours, theirs = context.Pipe()
            inherited = [worker.connection for worker in self._workers] + [ours] if METHOD == "fork" else []
            process = context.Process(target=_serve, args=(work, theirs, inherited, os.getpid()), daemon=True)  # type: ignore[attr-defined]
            process.start()
            theirs.close()  # a process that ends then ends its pipe
            self._workers.append(_Worker(process, ours))

    def map(
        self, tasks: Iterable[Any], ahead: int = 2, poll: Callable[[], None] = lambda: None
    ) -> Generator[Any, None, None]:
        """Yield the result of every task, in the order of the tasks; end the processes after the last one.

        Args:
            ahead: tasks that each process has at a time.
            poll: called at least once a second; raises when the work is to stop.

        Raises:
            PeerError: a process has died.
            Fault, OSError: as `work` raised them.
            RuntimeError: `work` raised something else; with its traceback.
        """
        rest, turns = iter(tasks), deque[_Worker]()
        try:
            for worker in self._workers * ahead:
                self._submit(worker, rest, turns)
            while turns:
                worker = turns.popleft()
                yield self._result(worker, poll)
                self._submit(worker, rest, turns)
        finally:
            self.close()

    def _submit(self, worker: _Worker, rest: Iterator[Any], turns: deque[_Worker]) -> None:
        for task in rest:
            with self._dying(worker):
                worker.submit(task)
            turns.append(worker)
            return

    def _result(self, worker: _Worker, poll: Callable[[], None]) -> Any:
        others = [other.process.sentinel for other in self._workers]
        while True:
            poll()
            ready = wait([worker.connection, *others], timeout=1.0)
            if any(sentinel in ready for sentinel in others):
                raise self._death()
            if worker.connection in ready:
                break
        with self._dying(worker):
            good, value = worker.connection.recv()
            worker.sizes.popleft()
            worker.push()
        if not good:
            raise value
        return value

    @contextlib.contextmanager
    def _dying(self, worker: _Worker) -> Iterator[None]:
        """Turn what a pipe raises when its other end is gone into the error that names the process."""
        try:
            yield
        except (EOFError, ConnectionError):
            raise self._death() from None

    def _death(self) -> PeerError:
        known = {worker.process.sentinel: worker.process for worker in self._workers}
        ended = [known[sentinel] for sentinel in wait(list(known), timeout=PATIENCE) if isinstance(sentinel, int)]
        for process in ended:
            process.join(PATIENCE)  # its files close a moment before its exit code is known
        code = next((process.exitcode for process in ended if process.exitcode is not None), None)
        names = " and ".join(str(process.pid) for process in ended) or "?"
        name = f"worker process {names} of {len(self._workers)} that read images"
        if code is None or code >= 0:
            return PeerError(f"{name} ended with exit code {code}; run the same command again")
        spelt = {number.value: number.name for number in signal.Signals}.get(-code, f"signal {-code}")
        cause = CAUSES.get(-code, "maybe by a fault of a library that decodes images; lower data.workers")
        return PeerError(f"{name} was killed ({spelt}), {cause}, and run the same command again")

    def close(self) -> None:
        """End the processes at once. They hold nothing that has to be kept."""
        for worker in self._workers:
            worker.process.kill()  # not terminate(): they ignore SIGTERM
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(PATIENCE)
            # Python waits at its end for what is listed here; the kernel may hold a process for as long as a disk hangs
            multiprocessing.process._children.discard(worker.process)  # type: ignore[attr-defined]
        self._workers = []


_alive: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


@atexit.register  # runs before multiprocessing's own, which would wait for processes that ignore SIGTERM
def _close_all() -> None:
    for pool in list(_alive):
        pool.close()


def _serve(work: Callable[[Any], Any], connection: Connection, inherited: list[Connection], parent: int) -> None:
    """Work on tasks until the parent closes the pipe or is gone."""
    ignore_signals()
    torch.set_num_threads(1)  # threads do not survive a fork
    for other in inherited:
        other.close()
    with contextlib.suppress(EOFError, OSError):
        while True:
            while not connection.poll(PATIENCE):
                if os.getppid() != parent:
                    return
            task = pickle.loads(connection.recv_bytes())
            connection.send(_outcome(work, task))


def _outcome(work: Callable[[Any], Any], task: Any) -> tuple[bool, Any]:
    try:
        return True, work(task)
    except (Fault, OSError) as error:
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(error))
            return False, error
        return False, RuntimeError(f"{type(error).__name__}: {error}")
    except Exception:
        return False, RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
