"""Run trials as jobs of a Slurm cluster, or of this machine, through submitit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ldae.app.ablation.ablation_dir import AblationDir
from ldae.app.ablation.runner import last_error, wrap_failure
from ldae.app.ablation.trials import PlannedTrial
from ldae.core.errors import ConfigError, Fault
from ldae.engine.signals import StopFlag
from linear_probe.rows import Row

POLL = 0.5  # seconds between two checks of the jobs
# keys of the call that its jobs do not inherit
NOT_OF_A_JOB = ("only", "seeds", "launcher", "parallel", "dry", "estimate", "report")


class TrialJob:
    """Job that runs `ldae ablate` for some trials; submitit pickles, runs and, after a timeout, requeues it.

    Args:
        argv: arguments of `ldae ablate`.
        folder: working directory.
    """

    def __init__(self, argv: Sequence[str], folder: str):
        self.argv, self.folder = list(argv), folder

    def __call__(self) -> int:
        """Run the trials; return the exit code. Their records are in the ablation's folder."""
        command = [sys.executable, "-m", "ldae", "ablate", *self.argv]
        return subprocess.run(command, cwd=self.folder, preexec_fn=_ignore_usr2, check=False).returncode

    def checkpoint(self, *args: Any) -> Any:
        """Return the same job again: it continues from its checkpoints."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def launch(
    launcher: Mapping[str, Any],
    ablation_dir: AblationDir,
    argv: Sequence[str],
    jobs: Sequence[Sequence[PlannedTrial]],
    report: Callable[[PlannedTrial, Row | Fault, float], None],
) -> None:
    """Submit jobs, wait for them, and report how each trial ended.

    Args:
        launcher: `cluster` (slurm or local), and parameters of submitit's executor; null ones are left to submitit.
        ablation_dir: folder of the ablation; submitit's logs go to its `launch`.
        argv: arguments of this call.
        jobs: trials that share a pretraining are one job.
        report: called for each trial with its row or its failure, and 0 seconds.

    Raises:
        ConfigError: submitit is not installed.
        Interrupted: a signal came; submitted jobs continue.
    """
    if not find_spec("submitit"):
        raise ConfigError("launcher.cluster", launcher["cluster"], 'needs submitit; pip install "ldae[slurm]"')
    import submitit

    parameters = {key: value for key, value in launcher.items() if key != "cluster" and value is not None}
    executor = submitit.AutoExecutor(folder=ablation_dir.out / "launch", cluster=launcher["cluster"])
    executor.update_parameters(name="ldae-ablate", **parameters)
    shared = [w for w in argv if w.partition("=")[0].split(".")[0] not in NOT_OF_A_JOB]
    shared += ["launcher=here", "estimate=false", "report=false"]
    stop = StopFlag()
    with stop.listening():
        with executor.batch():
            submitted = [executor.submit(TrialJob([*shared, *_selection(job)], str(Path.cwd()))) for job in jobs]
        while not all(job.done() for job in submitted):
            stop.poll()
            time.sleep(POLL)
    for planned in (planned for job in jobs for planned in job):
        row = ablation_dir.finished_row(planned)
        report(planned, row or wrap_failure("the job", Fault.code, last_error(ablation_dir.log(planned))), 0.0)


def _selection(job: Sequence[PlannedTrial]) -> list[str]:
    """Return the arguments that select the trials of a job, which share a pretraining and so its seed."""
    seed = job[0].trial.seed
    names = ",".join(planned.trial.name for planned in job)
    return [f"only=[{names}]", *([] if seed is None else [f"seeds=[{seed}]"])]


def _ignore_usr2() -> None:
    """Ignore Slurm's warning before the time limit, which is for submitit: it would end the child."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
