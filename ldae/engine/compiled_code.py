"""Compiled code: a folder of each process, filled from an archive that earlier processes saved."""

from __future__ import annotations

import atexit
import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from ldae.core.errors import Fault
from ldae.core.files import json_hash, load_tensors, save_tensors
from ldae.core.version import __version__

FOLDER = "TORCHINDUCTOR_CACHE_DIR"
PREFIX = "ldae-compiled-"
LOCK = ".lock"  # in a folder, held by its process
MOST_BYTES = 64 << 20  # of an archive; the code of eight blocks takes 2.5 MB
MOST_ARCHIVES = 16
LEFT_OUT = {LOCK, "locks", "triton"}  # torch restores Triton's folder, which holds absolute paths, from its other files

_held: list[FileLock] = []  # until the process ends


def compiler() -> str:
    """Return the name of the C++ compiler, as torch.compile chooses it."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


def use_own_folder() -> Path | None:
    """Give torch.compile a folder of this process, unless the user set $TORCHINDUCTOR_CACHE_DIR.

    The default folder is common to all processes, and a process killed during a compilation leaves a truncated file,
    on which every later process fails. In a folder that the user set, torch's keys leave out the instruction set:
    code for vectors of another length computes NaN or writes past the end of memory, so the set joins the key.

    Returns:
        The folder of this process; None if the user set one.
    """
    if _is_default_folder(os.environ.get(FOLDER)):
        remove_abandoned()
        os.environ[FOLDER] = tempfile.mkdtemp(prefix=PREFIX)
        atexit.register(shutil.rmtree, os.environ[FOLDER], ignore_errors=True)
        _held.append(FileLock(Path(os.environ[FOLDER]) / LOCK))
        with contextlib.suppress(OSError, NotImplementedError):  # a file system without locks
            _held[-1].acquire()
    tag = f"cpu={torch.backends.cpu.get_cpu_capability()}"
    if tag not in torch.compiler.config.cache_key_tag:
        torch.compiler.config.cache_key_tag += tag
    folder = Path(os.environ[FOLDER])
    return folder if folder.name.startswith(PREFIX) else None


def remove_abandoned(least_age: float = 60) -> None:
    """Remove the folders of processes that were killed: those whose lock nobody holds.

    Args:
        least_age: in seconds; a younger folder may be of a process that has not locked it yet.
    """
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError, NotImplementedError, Timeout):
            if time.time() - lock.stat().st_mtime >= least_age:
                with FileLock(lock, blocking=False):
                    shutil.rmtree(lock.parent, ignore_errors=True)


def _is_default_folder(folder: str | None) -> bool:
    """Return whether torch chose the folder: with the first optimizer it writes its default into the environment."""
    if folder is None:
        return True
    return Path(folder).parent == Path(tempfile.gettempdir()) and Path(folder).name.startswith("torchinductor_")


@dataclass
class CodeArchive:
    """Archive of the compiled code of networks on one kind of machine.

    It is written only after the code has run, in one step, with its SHA-256; an archive that is damaged, or belongs
    to another user, is not read. Where it cannot be read or written, networks are compiled.

    Attributes:
        path: file of the archive.
        folder: folder of this process, of torch.compile.
        others: files that were in the folder before, of other networks.
    """

    path: Path
    folder: Path
    others: frozenset[str]

    @classmethod
    def restored(cls, cache: Path, networks: Sequence[nn.Module]) -> CodeArchive | None:
        """Open the archive of networks below `cache`, and copy its files to the folder of this process.

        Call it before the networks are compiled for the first time.

        Returns:
            The archive; None if the user set a folder.
        """
        folder = use_own_folder()
        if folder is None:
            return None
        archive = cls(cache / "compiled" / f"{json_hash(_key(networks))[:20]}.safetensors", folder, frozenset())
        archive.others = frozenset(archive._names())
        for name, content in archive._load().items():
            target = folder / name
            if target.exists():
                continue
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.numpy().tobytes())
            except OSError:
                target.unlink(missing_ok=True)  # torch fails on a part of a file, and compiles without it
                break
        return archive

    def save(self) -> None:
        """Add new files of this process to the archive. Call it between steps: during one, files are incomplete."""
        new = set(self._names()) - self.others
        with contextlib.suppress(OSError, Fault):
            known = self._load()
            if new <= known.keys():
                return
            added = {name: _bytes_of(self.folder / name) for name in sorted(new - known.keys())}
            size = sum(content.numel() for content in {**known, **added}.values())
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            save_tensors(self.path, {**known, **added} if size <= MOST_BYTES else added)
            by_age = sorted(self.path.parent.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
            for path in by_age[:-MOST_ARCHIVES]:
                path.unlink(missing_ok=True)

    def _load(self) -> Mapping[str, Tensor]:
        """Return {name: content} of the archive; nothing if it is absent, damaged or another user's."""
        with contextlib.suppress(OSError, Fault):
            if hasattr(os, "getuid") and self.path.stat().st_uid != os.getuid():
                return {}  # the archive holds machine code, which would run with the rights of this user
            files = load_tensors(self.path)
            with contextlib.suppress(OSError):
                os.utime(self.path)  # the least recently used archives are removed
            if not any({"..", "/"} & set(PurePosixPath(name).parts) for name in files):
                return files
        return {}

    def _names(self) -> list[str]:
        paths = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return [path.as_posix() for path in paths if path.parts[0] not in LEFT_OUT]


def _bytes_of(path: Path) -> Tensor:
    content = path.read_bytes()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def _key(networks: Sequence[nn.Module]) -> list[object]:
    """Return what compiled code depends on: networks, versions, compiler, processor and number of threads."""
    shapes = [[(name, list(p.shape), str(p.device)) for name, p in net.named_parameters()] for net in networks]
    versions = [__version__, torch.__version__, torch.version.git_version, platform.python_version()]
    try:
        done = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=False)
        versions.append(done.stdout.partition("\n")[0])
    except OSError:  # no compiler
        pass
    user = os.getuid() if hasattr(os, "getuid") else 0
    machine = [*platform.libc_ver(), platform.machine(), *_processor(), torch.get_num_threads(), user]
    if torch.cuda.is_available():
        machine += [torch.cuda.get_device_name(), torch.version.cuda or torch.version.hip or ""]
    return [shapes, versions, machine]


def _processor() -> list[str]:
    """Return model and instruction sets of the processor: C++ code is compiled for exactly these."""
    lines = [torch.backends.cpu.get_cpu_capability()]
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        lines += [line for line in first if line.startswith(("model", "flags", "Features", "CPU part"))]
    return lines
