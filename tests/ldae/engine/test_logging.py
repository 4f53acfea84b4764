"""The log of a run: a failed write ends it with one sentence."""

from __future__ import annotations

import pytest

from ldae.core.errors import StorageError
from ldae.core.progress import Progress
from ldae.engine.logging import RunLog
from ldae.engine.run_folder import RunFolder


@pytest.mark.case("A10", "the disk is full in TensorBoard's writing thread")
def test_a_full_disk_below_tensorboard_is_one_sentence(tmp_path, recwarn, capfd):
    """The events are written by a thread, to a device that is always full."""
    run = RunFolder(tmp_path)
    log = RunLog(run, step=0, progress=Progress("off", total=1))
    log.flush()
    (events,) = run.tensorboard.iterdir()
    events.unlink()
    events.symlink_to("/dev/full")
    with pytest.raises(StorageError, match="tensorboard failed: No space left on device; free space there"):
        _write(log)
    with pytest.raises(StorageError, match="No space left on device"):
        log.close()
    assert "Traceback" not in capfd.readouterr().err
    assert not [w for w in recwarn if "Exception in thread" in str(w.message)]


def _write(log):
    for step in range(1000):
        log.row(step, {"loss": 1.0})
        log.flush()
