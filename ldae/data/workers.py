"""Pool of worker processes with results in order; the death of a process raises an error of one sentence.

Each process has a pipe of its own and there is no common lock, so that a process killed at any moment blocks no other.
(torch's DataLoader has a common queue, and ends its workers by SIGTERM, which these processes ignore.)
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

# forked processes share the memory of names and labels; on other systems than Linux, system libraries break in a fork
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
PIPE_BYTES = 1 << 15  # bytes of tasks sent to a busy process: less than the buffer of any pipe, so sending never blocks
TIMEOUT = 5.0  # seconds to wait for the end of a process, and between an idle process's checks of its parent
CAUSES: dict[int, str] = {  # signal -> likely cause and remedy
    signal.SIGKILL: "most likely because memory ran out; lower data.workers or train.batch, or free memory",
    signal.SIGBUS: "most likely because shared memory or a disk ran full; free some, or lower data.workers",
}


def ignore_signals(*_: Any) -> None:
    """Ignore the signals that stop a run; the main process handles them, and ends its workers itself."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@dataclass
class _Worker:
    """One worker process and its tasks.

    Attributes:
        process: the process.
        connection: the parent's end of the pipe.
        unsent: pickled tasks that do not fit into the pipe yet.
        sizes: bytes of each task that was sent and has no result yet.
    """

    process: BaseProcess
    connection: Connection
    unsent: deque[bytes] = field(default_factory=deque)
    sizes: deque[int] = field(default_factory=deque)

    def submit(self, task: Any) -> None:
        """Send a task to the worker."""
        self.unsent.append(pickle.dumps(task, pickle.HIGHEST_PROTOCOL))
        self.push()

    def push(self) -> None:
        """Send the tasks that fit into the pipe; an idle process reads a task of any size at once."""
        while self.unsent and (not self.sizes or sum(self.sizes) + len(self.unsent[0]) <= PIPE_BYTES):
            content = self.unsent.popleft()
            self.connection.send_bytes(content)
            self.sizes.append(len(content))


class WorkerPool:
    """Pool of processes that apply a function to tasks.

    Args:
        work: (task) -> result; both are pickled.
        workers: number of processes.
    """

    def __init__(self, work: Callable[[Any], Any], workers: int):
        self._workers: list[_Worker] = []
        _alive.add(self)
        context = multiprocessing.get_context(START_METHOD)
        for _ in range(workers):
            parent_end, child_end = context.Pipe()
            inherited = [worker.connection for worker in self._workers] + [parent_end] if START_METHOD == "fork" else []
            process = context.Process(target=_serve, args=(work, child_end, inherited, os.getpid()), daemon=True)  # type: ignore[attr-defined]
            process.start()
            child_end.close()  # so that the end of the process closes the pipe
            self._workers.append(_Worker(process, parent_end))

    def map(
        self, tasks: Iterable[Any], ahead: int = 2, poll: Callable[[], None] = lambda: None
    ) -> Generator[Any, None, None]:
        """Yield the result of every task, in the order of the tasks; end the processes after the last one.

        Args:
            tasks: arguments of `work`.
            ahead: number of tasks that each process has at a time.
            poll: function called at least once a second; raises when the work is to stop.

        Raises:
            PeerError: a process died.
            Fault, OSError: `work` raised it.
            RuntimeError: `work` raised another exception, whose traceback is the message.
        """
        rest, queue = iter(tasks), deque[_Worker]()
        try:
            for worker in self._workers * ahead:
                self._submit(worker, rest, queue)
            while queue:
                worker = queue.popleft()
                yield self._result(worker, poll)
                self._submit(worker, rest, queue)
        finally:
            self.close()

    def _submit(self, worker: _Worker, rest: Iterator[Any], queue: deque[_Worker]) -> None:
        """Send the next task, if there is one, to a worker, and append the worker to the queue of results."""
        for task in rest:
            with self._report_death():
                worker.submit(task)
            queue.append(worker)
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
        with self._report_death():
            succeeded, value = worker.connection.recv()
            worker.sizes.popleft()
            worker.push()
        if not succeeded:
            raise value
        return value

    @contextlib.contextmanager
    def _report_death(self) -> Iterator[None]:
        """Raise the PeerError of the dead process where a pipe is closed at its other end."""
        try:
            yield
        except (EOFError, ConnectionError):
            raise self._death() from None

    def _death(self) -> PeerError:
        processes = {worker.process.sentinel: worker.process for worker in self._workers}
        ended = [processes[s] for s in wait(list(processes), timeout=TIMEOUT) if isinstance(s, int)]
        for process in ended:
            process.join(TIMEOUT)  # its pipe closes a moment before its exit code is available
        code = next((process.exitcode for process in ended if process.exitcode is not None), None)
        names = " and ".join(str(process.pid) for process in ended) or "?"
        name = f"worker process {names} of {len(self._workers)} that read images"
        if code is None or code >= 0:
            return PeerError(f"{name} ended with exit code {code}; run the same command again")
        signal_name = {number.value: number.name for number in signal.Signals}.get(-code, f"signal {-code}")
        cause = CAUSES.get(-code, "maybe by a fault of a library that decodes images; lower data.workers")
        return PeerError(f"{name} was killed ({signal_name}), {cause}, and run the same command again")

    def close(self) -> None:
        """Kill the processes, which have no state to save."""
        for worker in self._workers:
            worker.process.kill()  # not terminate(): they ignore SIGTERM
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(TIMEOUT)
            # at exit, Python waits for the processes listed here; one in a read of a disk that hangs does not end
            multiprocessing.process._children.discard(worker.process)  # type: ignore[attr-defined]
        self._workers = []


_alive: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


@atexit.register  # runs before multiprocessing's exit function, which would wait for processes that ignore SIGTERM
def _close_all() -> None:
    for pool in list(_alive):
        pool.close()


def _serve(work: Callable[[Any], Any], connection: Connection, inherited: list[Connection], parent: int) -> None:
    """Send the results of tasks until the parent closes the pipe or ends."""
    ignore_signals()
    torch.set_num_threads(1)  # threads do not survive a fork
    for other in inherited:
        other.close()
    with contextlib.suppress(EOFError, OSError):
        while True:
            while not connection.poll(TIMEOUT):
                if os.getppid() != parent:
                    return
            task = pickle.loads(connection.recv_bytes())
            connection.send(_try_task(work, task))


def _try_task(work: Callable[[Any], Any], task: Any) -> tuple[bool, Any]:
    """Return (True, result), or (False, exception) with an exception that can be pickled."""
    try:
        return True, work(task)
    except (Fault, OSError) as error:
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(error))
            return False, error
        return False, RuntimeError(f"{type(error).__name__}: {error}")
    except Exception:
        return False, RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
