"""Search the noise schedule with which a super-resolution run samples best in few steps.

    ldae search-schedule run=SR3_RUN steps=20

Tries betas of linear and quadratic schedules (Sec. 3.3, arXiv 2104.07636) and scores each by the Frechet distance of
the enlarged hold-out images to the originals, because PSNR does not follow quality. Prints a table, best first, and the
arguments for `ldae sample` and `ldae restore`. Writes OUT/schedules.json.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from ldae.app.compose import compose, resolved
from ldae.app.precision import announce, settle_precision
from ldae.app.sampling.distances import Reader, caveats, check_count, compare_sets, reader_of
from ldae.app.sampling.generator import generator_of, provenance_of
from ldae.app.sampling.images import Pictures
from ldae.app.session import result_folder, root_settings, session_of
from ldae.core.errors import ConfigError
from ldae.core.files import write_json
from ldae.core.progress import Progress
from ldae.core.types import Count, Fraction, Positive
from ldae.diffusion.schedules import DDPMLinear, NoiseSchedule, Quadratic
from ldae.diffusion.spacing import All
from ldae.diffusion.targets import usable_steps
from ldae.diffusion.trajectory import build_trajectory
from ldae.sampling.generate import Generator
from ldae.sampling.restore import Enlarge
from ldae.tasks.super_resolution import SuperResolution

RAMPS = {"linear": "linear_ramp", "quadratic": "quadratic_ramp"}  # names in configs/sampling_schedule


@dataclass(frozen=True)
class SearchSettings:
    """Configure the search: the candidate schedules and the images to score them on.

    Attributes:
        steps: number of steps N of every schedule.
        first: candidate betas of the first step, at the clean end.
        last: candidate betas of the last step, at the noisy end.
        ramps: interpolations between the two betas.
        leftover: highest admissible gamma_N^2.
        count: number of hold-out images.
        batch: images per forward pass.
        features: feature extractor of the distance: classifier, inception, a shipped encoder, or the folder of a run.
    """

    steps: Count
    first: list[Positive]
    last: list[Positive]
    ramps: list[Literal["linear", "quadratic"]]
    leftover: Fraction
    count: Count
    batch: Count
    features: str

    def __post_init__(self) -> None:
        check_count("count", self.count)


def main(argv: Sequence[str]) -> None:
    """Run `ldae search-schedule`."""
    config, precision = settle_precision(resolved(compose("search_schedule", argv)))
    settings: SearchSettings = root_settings(SearchSettings, config)
    generator, run = generator_of(config)
    if not isinstance(generator.objective.task, SuperResolution):
        raise ConfigError("run", config["run"], "enlarges nothing; give a run of experiment=sr3/...")
    candidates = list(schedules(settings))
    if not candidates:
        raise ConfigError(
            "last", settings.last, f"leaves more than leftover={settings.leftover:g} of the image; raise it"
        )
    session = session_of(run, config)
    folder = result_folder(config, "schedules")
    with session.running(folder):
        announce(precision)
        pictures = Pictures(session, None, "holdout", settings.count, settings.batch)
        assert pictures.splits is not None
        reader = reader_of(settings.features, session, pictures.splits, "holdout")
        truth = reader.moments(torch.cat([batch.images.cpu() for batch in pictures]))
        warnings = caveats(reader, truth[0].count, truth)
        progress = Progress(session.progress, len(candidates), title="searching", unit="schedule")
        rows: list[dict[str, Any]] = [
            {"ramp": ramp, "first": first, "last": last, **scores(generator, schedule, pictures, reader)}
            for ramp, first, last, schedule in progress.track(candidates)
        ]
        distance = next(name for name in rows[0] if name.startswith(("frechet_distance", "FID")))
        rows.sort(key=lambda row: row[distance])
        write_json(folder.path / "schedules.json", {**provenance_of(config, run), "rows": rows, "caveats": warnings})
        print(table(rows))
        for caveat in dict.fromkeys(warnings):
            print(f"caveat: {caveat}")
        best = rows[0]
        print(f"sampling_schedule={RAMPS[best['ramp']]} sampling_schedule.T={settings.steps} "
              f"sampling_schedule.beta_first={best['first']:g} "
              f"sampling_schedule.beta_last={best['last']:g}")  # fmt: skip
        folder.set_status("done", len(rows))


def schedules(settings: SearchSettings) -> Iterator[tuple[str, float, float, NoiseSchedule]]:
    """Yield (ramp, first beta, last beta, schedule) of every candidate with gamma_N^2 <= leftover."""
    for ramp, first, last in itertools.product(settings.ramps, settings.first, settings.last):
        schedule: NoiseSchedule = (
            DDPMLinear(settings.steps, first, last, rescale=False)
            if ramp == "linear"
            else Quadratic(settings.steps, first, last)
        )
        if float(schedule.gamma[-1]) ** 2 <= settings.leftover:
            yield ramp, first, last, schedule


def scores(generator: Generator, schedule: NoiseSchedule, pictures: Pictures, reader: Reader) -> dict[str, float]:
    """Return the distances of the enlarged hold-out images to the originals, and their PSNR in dB."""
    steps = All().steps(usable_steps(schedule, generator.objective.target))
    visited = build_trajectory(schedule, steps, generator.objective.schedule)
    other = Generator(generator.objective, replace(generator.sampler, trajectory=visited), generator.seed)
    enlarge = Enlarge(other)
    batches = [enlarge(batch) for batch in pictures]
    columns = {name: torch.cat([columns[name].cpu() for columns in batches]) for name in batches[0]}
    truth = reader.moments(columns["original"])
    return {**compare_sets(reader, columns["sampled"], truth), "psnr": enlarge.figures(columns)["sampled"]["psnr"]}


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a Markdown table with a row for each schedule."""
    names = list(rows[0])
    texts = [[f"{row[n]:.4g}" if isinstance(row[n], float) else str(row[n]) for n in names] for row in rows]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in texts)])
