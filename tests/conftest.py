"""What tests share."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from _cli import compose, resolved  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache of the tests' own, for this process and those it starts."""
    folder = tmp_path_factory.getbasetemp().parent / "ldae-cache"
    os.environ["LDAE_CACHE"] = str(folder)
    return folder


@pytest.fixture
def config():
    """Composes the config of a tool: config("pretrain", "seed=1", ...)."""
    return lambda root, *words: resolved(compose(root, list(words)))


@pytest.fixture
def in_process():
    """(tool, words) -> (exit code, message), without the seconds that a process takes to start."""
    from ldae.errors import Fault

    def call(tool, *words):
        try:
            importlib.import_module(tool).main(list(words))
        except Fault as fault:
            return fault.code, str(fault)
        return 0, ""

    return call


@pytest.fixture(scope="session")
def real_data():
    """The folder of unpacked real data sets ($LDAE_DATA: cifar10/, imagenet-samples/, ...); skips where absent."""
    folder = os.environ.get("LDAE_DATA")
    if not folder or not Path(folder, "cifar10").is_dir():
        pytest.skip("set LDAE_DATA=DIR with DIR/cifar10 to run the tests on real images")
    return Path(folder)
