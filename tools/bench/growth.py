"""Measure how time and memory of a training step grow with images, tokens, d, width and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from interleaved import Competitor, interleaved

from ldae.core.files import open_atomic, write_json
from linear_probe.report.lines import label_decades
from linear_probe.report.plotting import (
    LIGHT,
    SERIES,
    WIDTH,
    DataRow,
    Drawing,
    figure_style,
    finished,
    new_figure,
)
from linear_probe.report.rendering import render

ARGV = ("experiment=ldae/cifar10_cpu", "data=photos", "train.compile=false")
BATCH = 64
STEPS = 24  # of a training by several processes; its rate is that of the steps after the first
# runs a command, and prints the peak memory in KiB of the largest of its processes
PEAK = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
PEAK += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"


@dataclass(frozen=True)
class Axis:
    """Quantity that grows.

    Attributes:
        label: of the axis in the figure.
        values: values of the quantity, rising.
        keys: value -> keys of `ldae pretrain`.
    """

    label: str
    values: tuple[int, ...]
    keys: Callable[[int], list[str]]


RANKS = "ranks"
AXES: Mapping[str, Axis] = {
    "images": Axis("images of a batch", (16, 32, 64, 128, 256), lambda n: [f"train.batch={n}"]),
    "tokens": Axis("tokens of an image", (16, 36, 64, 144), lambda n: [f"data.size={4 * round(n**0.5)}"]),
    "d": Axis("d, numbers of a latent token", (4, 8, 16, 32, 48), lambda n: [f"tokenizer.d={n}"]),
    "width": Axis("width of the network", (64, 128, 256, 512), lambda n: [f"denoiser.width={n}"]),
    RANKS: Axis("processes on this machine", (1, 2), lambda n: []),
}


@dataclass(frozen=True)
class GrowthPoint:
    """Cost of a training step at one value of one quantity.

    Attributes:
        axis: name of the quantity.
        value: its value.
        seconds: of a step.
        images: of the batch.
        peak: peak memory in GiB of a process, the largest of several.
    """

    axis: str
    value: int
    seconds: float
    images: int
    peak: float


def measure_growth(
    axes: Mapping[str, Axis], precision: str, threads: int, rounds: int, seconds: float
) -> list[GrowthPoint]:
    """Measure a training step of `ldae/cifar10_cpu`, not compiled, at every value of every axis; each in a process.

    Args:
        axes: quantities to vary, one at a time, in batches of 64 where that is not the one.
        precision: `fp32` or `bf16`.
        threads: CPU threads of a process; torch's default if 0.
        rounds: measurements of each value; the median counts.
        seconds: approximate duration of a measurement.

    Raises:
        Fault: a training cannot be built.
        subprocess.CalledProcessError: a training by several processes failed.
    """
    points = []
    for name, axis in axes.items():
        for value in axis.values:
            argv = [*ARGV, f"train.batch={BATCH}", f"train.precision={precision}", *axis.keys(value)]
            point = _by_processes(argv, value) if name == RANKS else _step(name, value, argv, threads, rounds, seconds)
            print(f"{axis.label} = {value}: {1000 * point.seconds:.3g} ms a step, {point.peak:.2f} GiB", flush=True)
            points.append(point)
    return points


def _step(name: str, value: int, argv: Sequence[str], threads: int, rounds: int, seconds: float) -> GrowthPoint:
    given: dict[str, Any] = {"argv": list(argv), "per_image": True}
    (timed,) = interleaved([Competitor(f"{name} = {value}", "competitors:training", given)], threads, rounds, seconds)
    return GrowthPoint(name, value, timed.work / timed.rate, int(timed.work), timed.peak)


def _by_processes(argv: Sequence[str], processes: int) -> GrowthPoint:
    """Measure a training by several processes, which divide each batch among them."""
    with tempfile.TemporaryDirectory(prefix="ldae-growth-") as folder:
        run = Path(folder) / "run"
        keys = ["train.epochs=null", f"train.steps={STEPS}", "train.log_every=1", "monitor.num_evals=0", f"out={run}"]
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
        command += ["-m", "ldae", "pretrain", *argv, *keys]
        threads = str(max(1, (os.cpu_count() or 1) // processes))
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *command], check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        lines = (run / "metrics.jsonl").read_text().splitlines()
    rates = sorted(json.loads(line)["images_per_second"] for line in lines[1:])
    return GrowthPoint(RANKS, processes, BATCH / rates[len(rates) // 2], BATCH, int(done.stdout.split()[-1]) / 2**20)


def write_growth(points: Sequence[GrowthPoint], provenance: Mapping[str, Any], folder: Path) -> None:
    """Write growth.json, and the curves as growth.svg, .pdf, .png and .csv."""
    write_json(folder / "growth.json", {**provenance, "points": [asdict(point) for point in points]})
    for suffix, content in render(draw_growth(points)).items():
        with open_atomic(folder / f"growth.{suffix}") as file:
            file.write(content)


@figure_style()
def draw_growth(points: Sequence[GrowthPoint]) -> Drawing:
    """Draw milliseconds of a step and peak memory over each quantity; the time is on a logarithmic axis."""
    names = [name for name in AXES if any(point.axis == name for point in points)]
    figure = new_figure(2 * WIDTH, 3.4)
    grid = figure.subplots(2, len(names), squeeze=False, sharey="row")
    data: list[DataRow] = [["quantity", "value", "ms of a step", "peak GiB"]]
    for column, name in enumerate(names):
        of_axis = [point for point in points if point.axis == name]
        x = [point.value for point in of_axis]
        rows = ([1000 * point.seconds for point in of_axis], [point.peak for point in of_axis])
        for row, y in enumerate(rows):
            axes = grid[row][column]
            axes.plot(x, y, color=SERIES[row], marker="o", markeredgecolor=LIGHT["background"])
            axes.set_xscale("log", base=2)
            axes.minorticks_off()
            axes.set_xticks(x, [str(value) for value in x], fontsize=6)
            axes.grid(axis="y")
        grid[1][column].set_xlabel(AXES[name].label, fontsize=6)
        data += [[name, point.value, 1000 * point.seconds, point.peak] for point in of_axis]
    grid[1][0].set_ylim(0, 1.05 * max(point.peak for point in points))
    grid[0][0].set_yscale("log")
    label_decades(grid[0][0])
    grid[0][0].set_ylabel("ms of a step (log)")
    grid[1][0].set_ylabel("peak GiB of a process")
    description = "Time and peak memory of a training step over " + ", ".join(AXES[name].label for name in names) + "."
    return finished(figure, "Cost of a training step", description, {}, data)
