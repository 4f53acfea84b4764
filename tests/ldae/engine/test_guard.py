"""Verdicts on steps: read late, nothing is lost; and the host never waits for the device."""

from __future__ import annotations

import pytest
import torch
from test_trainer import RUNS, Poisoned, losses, rows, same, trainer, weights
from torch.utils._python_dispatch import TorchDispatchMode

from ldae.core.errors import Interrupted, NonFiniteError
from ldae.engine.checkpoint import newest
from ldae.engine.guard import Verdict
from ldae.engine.signals import StopFlag

READS = (  # operations that make a host wait for its device: it reads a value, or a value decides a shape
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.bincount.default,
)


class NoReading(TorchDispatchMode):
    """Refuses operations that would wait for the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in READS, f"{function} makes the host wait"
        if function is torch.ops.aten.index.Tensor:
            assert all(i is None or i.dtype is not torch.bool for i in args[1]), (
                "a mask as an index makes the host wait"
            )
        return function(*args, **(kwargs or {}))


def deferred(training):
    training.guard.deferred = True
    return training


def steps(training, count, monkeypatch):
    """Make training steps that log nothing, and fail where the host reads a number or a list."""
    batches = training.loader.batches(0)
    first = next(batches)  # an epoch begins: its order goes to the device
    training.train_step(first)
    with monkeypatch.context() as patch, NoReading():
        patch.setattr(torch.Tensor, "tolist", lambda self: pytest.fail("a list is read"))
        if training.guard.deferred:  # what is read then is on the host
            patch.setattr(Verdict, "read", lambda self: (False, False))
        for _ in range(count):
            training.train_step(next(batches))


@pytest.mark.parametrize("argv", RUNS)
def test_no_step_waits_for_the_device(config, tmp_path, monkeypatch, argv):
    training = deferred(trainer(config, tmp_path, argv=argv, precision="bf16"))
    steps(training, 3, monkeypatch)  # fails where anything is read
    assert training.state.step == 4


def test_waiting_would_be_noticed(config, tmp_path, monkeypatch):
    with pytest.raises(pytest.fail.Exception, match="a list is read"):
        steps(trainer(config, tmp_path), 1, monkeypatch)


def test_late_verdicts_change_no_bit(config, tmp_path):
    trainer(config, tmp_path / "now").fit()
    deferred(trainer(config, tmp_path / "late", log_every=7)).fit()
    assert losses(tmp_path / "late") == [losses(tmp_path / "now")[k] for k in (6, 9)]
    assert same(weights(tmp_path / "now"), weights(tmp_path / "late"))


def test_a_nan_that_is_noticed_late_has_not_moved_the_weights(config, tmp_path):
    good = trainer(config, tmp_path / "good", steps=2)
    good.fit()
    broken = deferred(trainer(config, tmp_path / "broken", wrap=Poisoned, log_every=100, checkpoint_every=100))
    broken.total = 8
    with pytest.raises(NonFiniteError, match="step 3; the step was not made"):
        broken.fit()
    assert newest(tmp_path / "broken" / "checkpoints") is None
    assert not rows(tmp_path / "broken")
    for name, value in broken.state.weights.items():
        assert torch.isfinite(value).all(), name
    assert same_rates(good, broken)


def same_rates(good, broken):
    """Return whether both have made two steps, whatever length was configured."""
    return all(
        int(a["step"]) == int(b["step"]) == 2
        for a, b in zip(*(t.state.optimizers["model"].state.values() for t in (good, broken)), strict=True)
    )


def test_a_stop_that_is_noticed_late_is_saved_and_goes_on_bit_for_bit(config, tmp_path):
    trainer(config, tmp_path / "straight").fit()
    stop = StopFlag()
    stopped = deferred(trainer(config, tmp_path / "stopped", stop=stop, log_every=100))
    stop.signal_name = "SIGTERM"
    with pytest.raises(Interrupted):
        stopped.fit()
    assert newest(tmp_path / "stopped" / "checkpoints").step == 2  # the flag is set before step 1 and read at step 2
    deferred(trainer(config, tmp_path / "stopped")).fit()
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "stopped"))
