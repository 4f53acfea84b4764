"""Cells as jobs of a launcher of Hydra's: a Slurm cluster through submitit, or this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _cells import failed
from _plan import Planned
from _rows import Place

from ldae.errors import Fault
from ldae.files import write_json
from linear_probe.rows import Row

HERE = Path(__file__).resolve().parent
PACKAGES = {
    "submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
}
# words of the call that are not for a job of it
NOT_THEIRS = ("only", "launcher", "parallel", "dry", "estimate", "report")


def launch(
    launcher: Mapping[str, Any],
    place: Place,
    words: Sequence[str],
    jobs: Sequence[Sequence[Planned]],
    tell: Callable[[Planned, Row | Fault, float], None],
) -> None:
    """Runs jobs by Hydra's multirun, waits for them, and tells how each cell ended.

    Args:
        launcher: its plugin, and the plugin's own keys; those that are null are left to the plugin.
        words: of this call.
        jobs: cells that share a pretraining are one job.

    Raises:
        ConfigError: the plugin is not installed.
    """
    folder = place.out / "launch"
    folder.mkdir(exist_ok=True)
    theirs = [w for w in words if w.partition("=")[0].split(".")[0] not in NOT_THEIRS]
    plan = {
        "tool": str(HERE / "ablate.py"),
        "words": [*theirs, "launcher=here", "estimate=false", "report=false"],
        "jobs": [[planned.cell.name for planned in job] for job in jobs],
        "cwd": str(Path.cwd()),
    }
    write_json(folder / "plan.json", plan)
    code = subprocess.run([sys.executable, *application(launcher, folder, len(jobs))], check=False).returncode
    if code:
        print(f"the launcher ended with {code}; what the jobs said: {folder}", file=sys.stderr)
    for planned in (planned for job in jobs for planned in job):
        row = place.finished(planned)
        tell(planned, row or failed("the job", Fault.code, ""), 0.0)


def application(launcher: Mapping[str, Any], folder: Path, jobs: int) -> list[str]:
    """The words of _launch.py."""
    own = {key: value for key, value in launcher.items() if key != "plugin" and value is not None}
    return [
        str(HERE / "_launch.py"),
        "--multirun",
        f"hydra/launcher={launcher['plugin']}",
        f"hydra.sweep.dir={json.dumps(str(folder.resolve()))}",
        "hydra.sweep.subdir=${hydra.job.num}",
        "hydra.job.name=ablate",
        *(f"hydra.launcher.{key}={json.dumps(value)}" for key, value in own.items()),
        f"+plan={json.dumps(str((folder / 'plan.json').resolve()))}",
        f"+job={','.join(map(str, range(jobs)))}",
    ]
