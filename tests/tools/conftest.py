"""What the tests of the tools share."""

from __future__ import annotations

import importlib

import pytest


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
