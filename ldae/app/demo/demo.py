"""Pretrain l-DAE on embedded photographs by two recipes, probe them and baselines, print a table and draw a picture.

    ldae demo [out=FOLDER] [seeds=[0,1,2]] [KEY=VALUE ...]

Takes three minutes on two cores and downloads nothing (`make demo`). `out=` defaults to runs/demo. With
several seeds the table shows mean and standard deviation. Every other KEY=VALUE applies to both pretrainings. The same
command again resumes; a finished demo prints its table at once.
"""

from __future__ import annotations

import re
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from ldae.app.demo.tasks import Task, run_tasks
from ldae.core.errors import UsageError
from ldae.data.photos import PHOTOGRAPHS
from linear_probe.results import Result, markdown, read_results

RECIPES = {  # folder below configs/experiment/demo -> title
    "ldae_eps": "l-DAE, noise predicted in the latent (deconstruct/07_patch_pca), Muon",
    "ldae_paper": "l-DAE as in the paper (deconstruct/12_ldae)",
}
SHORT = {"ldae_eps": "noise predicted in the latent", "ldae_paper": "as in the paper"}
PROTOCOLS = {"lbfgs": "linear", "knn": "kNN", "knn_whitened": "kNN, whitened"}
QUIET = ("runtime.threads=1", "runtime.progress=false")  # one core is fastest for matrices of this size
PROBED = ("precision=fp32",)  # the same results on every processor
LAYER = 3  # of 4; best on the hold-out for both recipes
UNTRAINED = "ldae_eps"  # recipe of the untrained baseline: the better of the two on the hold-out
PICTURE = "denoising.png"


def main(argv: Sequence[str]) -> None:
    """Pretrain, probe, then print the table, the picture's path and further commands."""
    out, seeds, extra = arguments(argv)
    tasks = all_tasks(out, seeds, extra)
    if any(not task.is_done() for task in tasks):
        print(f"l-DAE on crops of twelve photographs, two recipes, seeds {seeds}, two processes at a time; in {out}")
        run_tasks(tasks)
    print(f"\n{report(out, seeds)}\n")
    picture = out / PICTURE
    if not picture.exists():
        from ldae.app.demo.picture import draw_denoising

        draw_denoising(out / "ldae_eps" / f"seed{seeds[0]}", picture)
    print(f"Input, noised and denoised side by side:  {shlex.quote(str(picture))}\n")
    print(next_steps(out, seeds[0]))


def arguments(argv: Sequence[str]) -> tuple[Path, list[int], list[str]]:
    """Return the folder, the seeds and the overrides of a command line.

    Raises:
        UsageError: an argument is no KEY=VALUE, or the seeds are not a list of different whole numbers.
    """
    keys = dict(word.partition("=")[::2] for word in argv)
    if not all("=" in word for word in argv):
        raise UsageError("usage: ldae demo [out=FOLDER] [seeds=[0,1,2]] [KEY=VALUE ...]")
    out, text = Path(keys.pop("out", "runs/demo")).expanduser(), keys.pop("seeds", "[0]")
    if not re.fullmatch(r"\[?\d{1,9}(,\s*\d{1,9})*\]?", text):
        raise UsageError(f"seeds={text} is no list of whole numbers, e.g. seeds=[0,1,2]")
    seeds = [int(number) for number in re.findall(r"\d+", text)]
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds={text} names a seed twice")
    if fixed := {"data", "experiment", "seed"} & set(keys):
        raise UsageError(f"{min(fixed)}= is fixed in the demo; use ldae pretrain")
    return out, seeds, [f"{key}={value}" for key, value in keys.items()]


def all_tasks(out: Path, seeds: Sequence[int], extra: Sequence[str]) -> list[Task]:
    """Return the tasks of the demo in the order of their start; two run at a time."""
    runs = [(recipe, seed, out / recipe / f"seed{seed}") for seed in seeds for recipe in RECIPES]
    several = len(seeds) > 1
    tasks, probes = [], []
    for recipe, seed, run in runs:
        label = f"{SHORT[recipe]}, seed {seed}" if several else SHORT[recipe]
        argv = (f"experiment=demo/{recipe}", f"seed={seed}", f"out={run}", *extra, *QUIET)
        tasks.append(Task(f"pretrain: {label}", "pretrain", argv, run / "status.json", run / "log.txt"))
        encoders = {"probe": ("baselines=false", f"layers=[{LAYER}]"), "untrained": ("baseline=untrained",)}
        for encoder in encoders if recipe == UNTRAINED else ("probe",):
            argv = (f"run={run}", *encoders[encoder], *PROBED, *QUIET)
            result, log = results_of(run, encoder), run / f"{encoder}.txt"
            probes.append(Task(f"{encoder}: {label}", "probe", argv, result, log, 3, needs=run / "status.json"))
    data = [word for word in extra if word.startswith("data.")]
    for baseline, figures in (("pixels", 2), ("pca", 3)):
        argv = (f"baseline={baseline}", f"out={out}", "data=photos", *data, *PROBED, *QUIET)
        tasks.append(
            Task(f"probe: {baseline}", "probe", argv, results_of(out, baseline), out / f"{baseline}.txt", figures)
        )
    return tasks + probes


def results_of(folder: Path, encoder: str) -> Path:
    """Return the results file of `ldae probe`.

    Args:
        folder: folder of the run, or of the demo for `pixels` and `pca`.
        encoder: `probe` for the pretrained encoder, or the name of a baseline.
    """
    if encoder == "probe":
        return folder / "probe" / "results.jsonl"
    return folder / ("probe" if encoder == "untrained" else "") / f"results-{encoder}.jsonl"


def report(out: Path, seeds: Sequence[int]) -> str:
    """Return the table with its caption: recipes first, then baselines and chance."""
    rows: dict[str, list[Result]] = {name: [] for name in RECIPES.values()}
    for recipe, name in RECIPES.items():
        for seed in seeds:
            run = out / recipe / f"seed{seed}"
            rows[name] += read_results(results_of(run, "probe"))
    untrained = (out / UNTRAINED / f"seed{seed}" for seed in seeds)
    rows["the same network, untrained"] = [r for run in untrained for r in read_results(results_of(run, "untrained"))]
    rows["raw pixels"] = read_results(results_of(out, "pixels"))
    rows["whole-image PCA"] = read_results(results_of(out, "pca"))
    first = rows[RECIPES["ldae_eps"]][0]
    lines = [["encoder", *PROTOCOLS.values()]]
    for name, results in rows.items():
        lines.append([name, *(_format([r.accuracy for r in results if r.protocol == p]) for p in PROTOCOLS)])
    lines.append(["chance", *[f"{100 / len(PHOTOGRAPHS):.1f}"] * len(PROTOCOLS)])
    spread = f", mean +- standard deviation of {len(seeds)} seeds" if len(seeds) > 1 else f", seed {seeds[0]}"
    return (
        f"Top-1 accuracy on {first.images} test crops of {len(PHOTOGRAPHS)} photographs in percent{spread}.\n"
        f"Every setting (layer, penalty, k) was selected on a hold-out.\n\n{markdown(lines)}"
    )


def _format(values: Sequence[float]) -> str:
    """Return an entry of the table: mean and, with several values, standard deviation."""
    if not values:
        return ""
    spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def next_steps(out: Path, seed: int) -> str:
    """Return three commands that can be pasted into a shell."""
    python, command = (_from_here(path) for path in (Path(sys.executable), Path(sys.executable).parent / "ldae"))
    run = shlex.quote(f"run={out / 'ldae_eps' / f'seed{seed}'}")
    return "\n".join(
        (
            "Next: your own pictures (a folder instead of PICTURES); another probe; curves and pictures of training:",
            f"  {command} pretrain experiment=ldae/imagefolder_cpu data.root=PICTURES out=runs/mine",
            f"  {command} probe {run} 'protocols=[lbfgs,knn,paper]' 'layers=[1,2,3,4]' split=holdout",
            f"  {python} -m tensorboard.main --logdir {shlex.quote(str(out))}",
        )
    )


def _from_here(path: Path) -> str:
    """Return a path quoted for a shell, relative to the working folder if it lies below."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
