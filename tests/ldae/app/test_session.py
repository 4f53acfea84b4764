"""The machine's part of a session: when the number of threads is adapted to the load."""

from __future__ import annotations

import pytest

from ldae.app.session import Session

WORDS = ("experiment=ldae/digits", "denoiser=vit_64x4")


@pytest.mark.parametrize(
    ("argv", "environment", "adapts"),
    [
        (("device=cpu",), {}, True),
        (("device=cpu", "runtime.threads=1"), {}, False),
        (("device=cpu",), {"OMP_NUM_THREADS": "1"}, False),
        (("device=cpu",), {"WORLD_SIZE": "2"}, False),
    ],
)
def test_threads_are_adapted_where_no_number_is_set(config, monkeypatch, argv, environment, adapts):
    """A number that is set stays: two runs with it have the same bits."""
    for name in ("OMP_NUM_THREADS", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (Session(config("pretrain", *WORDS, *argv)).threads is not None) == adapts
