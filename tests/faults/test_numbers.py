"""NaN and infinity: the run stops before the step (results/faults.json, case 23)."""

from __future__ import annotations

import json

import pytest
from helpers import SHORT, rows, run, status


@pytest.mark.slow
@pytest.mark.case("23", "a learning rate that makes the weights infinite")
def test_a_loss_that_is_not_finite_is_70_and_names_the_pictures(tmp_path):
    folder = tmp_path / "r"
    _, err = run(
        "pretrain", f"out={folder}", *SHORT, "optim.blr=1e30", "optim.warmup=0", "monitor.num_evals=0", code=70
    )
    report = json.loads((folder / "nonfinite-rank0.json").read_text())
    assert f"at step {report['step']}; the step was not made" in err
    assert len(report["images"]) == 64
    assert all(name.startswith("digit-") for name in report["images"])
    assert len(report["levels"][0]["sigma"]) == 64
    assert (status(folder)["state"], status(folder)["code"]) == ("failed", 70)
    assert max([0, *(row["step"] for row in rows(folder))]) < report["step"]
    assert not any(int(p.name[5:]) >= report["step"] for p in (folder / "checkpoints").glob("step-*"))
