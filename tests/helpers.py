"""Running the tools as a user does: as processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from forked import run_forked

ROOT = Path(__file__).resolve().parent.parent
SHORT = (
    "train.steps=12",
    "train.batch=64",
    "train.log_every=1",
    "train.checkpoint_every=4",
    "monitor.num_evals=2",
    "runtime.threads=1",
    "runtime.progress=false",
)
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


NAMED = {"pretrain": ("experiment=ldae/digits",), "train_tokenizer": ("data=digits",), "ablate": ("grid=deconstruct",)}


def complete(tool, argv):
    """Return the arguments of a command, with the tests' experiment, data or grid where they name none."""
    given = {word.partition("=")[0] for word in map(str, argv)}
    return [*(word for word in NAMED.get(tool, ()) if word.partition("=")[0] not in given), *map(str, argv)]


def command(tool, *argv):
    return [sys.executable, "-m", "ldae", tool.replace("_", "-"), *complete(tool, argv)]


def run(tool, *argv, code=0, seconds=300, **environment):
    """Runs a tool to its end; its standard output and error. The exit code must be `code`.

    Given variables of the environment it is started anew: imports may read them. Otherwise it is forked.
    """
    env = {**os.environ, **ENVIRONMENT, **environment}
    if environment or not hasattr(os, "fork"):
        done = subprocess.run(command(tool, *argv), capture_output=True, text=True, env=env, timeout=seconds)
        returned, out, err = done.returncode, done.stdout, done.stderr
    else:
        ((returned, out, err),) = run_forked(command(tool, *argv)[3:], [env], seconds)
    assert returned == code, f"exit {returned}\n{out}\n{err}"
    if code:
        assert "Traceback" not in err
    return out, err


def torchrun(tool, *argv):
    """Runs a tool in two processes to its good end, as `torchrun --nproc_per_node=2` does."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    shared = {**os.environ, **ENVIRONMENT, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environments = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    (first, out, err), (second, more, errors) = run_forked(command(tool, *argv)[3:], environments, 300)
    assert first == second == 0, err + errors
    return out + more, err + errors


def start(tool, *argv):
    """Starts a tool and does not wait."""
    env = {**os.environ, **ENVIRONMENT}
    return subprocess.Popen(command(tool, *argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def rows(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    """Step -> the loss's exact bits."""
    return {row["step"]: row["loss_hex"] for row in rows(folder) if "loss_hex" in row}


def weights(folder):
    """The bytes of the last checkpoint's tensors."""
    last = sorted((Path(folder) / "checkpoints").glob("step-*"))[-1]
    return {p.name: p.read_bytes() for p in sorted(last.glob("*.safetensors")) if p.name != "rng.safetensors"}


def status(folder):
    return json.loads((Path(folder) / "status.json").read_text())


def as_if_stopped(reference, folder, step=8):
    """A copy of a finished run as if it had stopped at a step."""
    shutil.copytree(reference, folder)
    for path in (folder / "checkpoints").glob("step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    (folder / "status.json").write_text("{}")
    return folder
