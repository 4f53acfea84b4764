"""Cells as jobs of a launcher of Hydra's: a Slurm cluster through submitit, or this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ldae.app.ablation.ablation_dir import AblationDir
from ldae.app.ablation.runner import failed, last_error, run_child
from ldae.app.ablation.trials import PlannedTrial
from ldae.core.errors import ConfigError, Fault
from ldae.core.files import write_sealed_json
from ldae.engine.signals import StopFlag
from linear_probe.rows import Row

LAUNCHED = ["-m", "ldae.app.ablation.launched"]
SUBMITIT = "submitit_"  # what the plugins of hydra-submitit-launcher begin with
# words of the call that are not for a job of it
NOT_THEIRS = ("only", "launcher", "parallel", "dry", "estimate", "report")


def launch(
    launcher: Mapping[str, Any],
    ablation_dir: AblationDir,
    argv: Sequence[str],
    jobs: Sequence[Sequence[PlannedTrial]],
    tell: Callable[[PlannedTrial, Row | Fault, float], None],
) -> None:
    """Runs jobs by Hydra's multirun, waits for them, and tells how each cell ended.

    Args:
        launcher: its plugin, and the plugin's own keys; those that are null are left to the plugin.
        words: of this call.
        jobs: cells that share a pretraining are one job.

    Raises:
        ConfigError: the plugin is not installed.
        Interrupted: a signal came; jobs of a cluster go on.
    """
    if launcher["plugin"].startswith(SUBMITIT) and not find_spec("submitit"):
        raise ConfigError("launcher.plugin", launcher["plugin"], 'is not installed; pip install "ldae[slurm]"')
    folder = ablation_dir.out / "launch"
    folder.mkdir(exist_ok=True)
    theirs = [w for w in argv if w.partition("=")[0].split(".")[0] not in NOT_THEIRS]
    plan = {
        "overrides": [*theirs, "launcher=here", "estimate=false", "report=false"],
        "jobs": [[planned.trial.name for planned in job] for job in jobs],
        "cwd": str(Path.cwd()),
    }
    write_sealed_json(folder / "plan.json", plan)
    stop, log = StopFlag(), folder / "launch.log"
    with stop.listening():
        code, _ = run_child(LAUNCHED, application(launcher, folder, len(jobs)), log, stop, lambda: None)
    stop.poll()
    if code:
        print(f"the launcher ended with {code}; what it said: {log}", file=sys.stderr)
    for planned in (planned for job in jobs for planned in job):
        row = ablation_dir.finished(planned)
        tell(planned, row or failed("the job", Fault.code, last_error(ablation_dir.log(planned))), 0.0)


def application(launcher: Mapping[str, Any], folder: Path, jobs: int) -> list[str]:
    """Return the arguments of ldae.app.ablation.launched."""
    own = {key: value for key, value in launcher.items() if key != "plugin" and value is not None}
    return [
        "--multirun",
        f"hydra/launcher={launcher['plugin']}",
        f"hydra.sweep.dir={json.dumps(str(folder.resolve()))}",
        "hydra.sweep.subdir=${hydra.job.num}",
        "hydra.job.name=ablate",
        *(f"hydra.launcher.{key}={json.dumps(value)}" for key, value in own.items()),
        f"+plan={json.dumps(str((folder / 'plan.json').resolve()))}",
        f"+job={','.join(map(str, range(jobs)))}",
    ]
