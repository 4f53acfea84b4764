"""Turn the images of one folder into those of another: Animorphosis of Cold Diffusion, from folders to an animation.

    ldae morph source=ANIMALS target=FACES out=OUT
    ldae morph source=ANIMALS target=FACES out=OUT train.steps=20000 data.size=64 schedule=cosine

Trains experiment=cold_blend/imagefolder_cpu in OUT/run to restore targets from cross-fades (T - t) / T x0 + t / T y
with a source image y (Sec. 5, arXiv 2208.09392), then starts at source images and samples by algorithm 2. `count=` is
the number of images (16), `noise=` the deviation of noise added to them ([-1, 1] scale, 0), `seed=` the seed; every
other KEY=VALUE is one of `ldae pretrain`. The same command again resumes. Writes OUT/morph/trajectory.gif, the
animation of eight images (above x_t, below the predicted x0), OUT/morph/trajectory.png, the same as a strip, and
OUT/morph/grid.png, the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldae.app.overrides import argument
from ldae.app.sampling import sample
from ldae.app.training import pretrain
from ldae.core.errors import DataError, UsageError

EXPERIMENT = "experiment=cold_blend/imagefolder_cpu"
REQUIRED = ("source", "target", "out")
SHARED = ("device", "seed", "runtime.threads", "runtime.progress", "data.cache", "data.workers")  # of both commands
FIXED = ("run", "corruption", "blend_dataset", "init", "gif")


def main(argv: Sequence[str]) -> None:
    """Train on two folders, and animate the way from one to the other."""
    keys = arguments(argv)
    out, run = Path(keys["out"]).expanduser(), Path(keys["out"]).expanduser() / "run"
    for key in ("source", "target"):
        if not Path(keys[key]).expanduser().is_dir():
            raise DataError(f"{key}={keys[key]} is no folder of images")
    folders = {"data.root": keys["target"], "blend_dataset.root": keys["source"], "out": run}
    given = {key: keys.pop(key, default) for key, default in (("count", "16"), ("noise", "0"))}
    trained = [f"{key}={value}" for key, value in keys.items() if key not in REQUIRED]
    experiment = [] if "experiment" in keys else [EXPERIMENT]
    pretrain.main([*experiment, *(argument(key, value) for key, value in folders.items()), *trained])
    shared = [f"{key}={keys[key]}" for key in SHARED if key in keys]
    start = ["init=mixed_signal", f"init.noise={given['noise']}", f"count={given['count']}", "gif=true"]
    sample.main([argument("run", run), argument("out", out / "morph"), *start, *shared])
    print(f"animation: {out / 'morph' / 'trajectory.gif'}\n  as a strip: {out / 'morph' / 'trajectory.png'}")


def arguments(argv: Sequence[str]) -> dict[str, str]:
    """Return the values of a command line by their keys.

    Raises:
        UsageError: an argument is no KEY=VALUE, a folder is missing, or a key is fixed by the command.
    """
    if not all("=" in word for word in argv):
        raise UsageError("usage: ldae morph source=FOLDER target=FOLDER out=FOLDER [KEY=VALUE ...]")
    keys = dict(word.partition("=")[::2] for word in argv)
    for key in REQUIRED:
        if not keys.get(key):
            raise UsageError(f"{key}= is not given; ldae morph needs source=FOLDER target=FOLDER out=FOLDER")
    if fixed := [key for key in keys if key in (*FIXED, "data.root", "blend_dataset.root")]:
        raise UsageError(f"{fixed[0]}= is fixed in ldae morph; use ldae pretrain and ldae sample")
    return keys
