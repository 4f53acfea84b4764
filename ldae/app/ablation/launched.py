"""A Hydra application whose jobs are cells of an ablation: what ldae ablate starts for a launcher.

    python -m ldae.app.ablation.launched --multirun hydra/launcher=submitit_slurm plan=OUT/launch/plan.json job=0,1,2

Each job is `ldae ablate` with the words of the plan and the cells of the job. How a cell ended is in the
ablation's folder; a job that fails does not stop the others.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from ldae.core.files import read_sealed_json


def spare() -> None:
    """Slurm's warning before the end is for submitit: a child that does not know it would die of it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


@hydra.main(config_path=None, config_name=None, version_base="1.3")
def main(config: DictConfig) -> int:
    """Runs the cells of one job."""
    plan = read_sealed_json(Path(str(config.plan)))
    argv = ["-m", "ldae", "ablate", *plan["overrides"], f"only=[{','.join(plan['jobs'][config.job])}]"]
    return subprocess.run([sys.executable, *argv], cwd=plan["cwd"], preexec_fn=spare, check=False).returncode


if __name__ == "__main__":
    main()
