"""Read which layer and noise level the probe of a run selected."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from linear_probe.results import Result, percent, read_results, title


def read_at(
    run: Path, checkpoint: str, layer: int | None, t: int | None, input: str = "clean", pooling: str = "mean"
) -> tuple[int | None, int | None]:
    """Return layer and t: the given ones, else those that the run's probe selected for a checkpoint, else None.

    Uses the first result of the probe with this input and pooling, and prints the choice.

    Args:
        run: folder of the run; its files probe/results*.jsonl are read.
        checkpoint: hash of the checkpoint.
        layer, t: the given layer and diffusion step, or None; a result must have those that are given.
        input, pooling: `clean` or `noised`, and the name of a pooling.
    """
    if layer is not None and t is not None:
        return layer, t
    for result in probe_results(run, checkpoint):
        fits = (result.input, result.pooling) == (input, pooling)
        if fits and layer in (None, result.layer) and t in (None, result.t):
            how = f"{title(result.protocol)}, {percent(result)} % on {result.split}"
            print(f"layer={result.layer} t={result.t}, as the run's probe selected them ({how})", flush=True)
            return result.layer, result.t
    print(f"layer and t: the defaults; {run / 'probe'} has no probe of this checkpoint that selected them", flush=True)
    return layer, t


def probe_results(run: Path, checkpoint: str) -> Iterator[Result]:
    """Yield the probe's results of a checkpoint, those of all labels and the test split first; skip damaged files."""
    for path in sorted((run / "probe").glob("results*.jsonl"), key=lambda p: (p.name != "results.jsonl", p.name)):
        try:
            results = read_results(path)
        except (OSError, ValueError, TypeError) as error:
            print(f"{path} cannot be read and is skipped ({error})", file=sys.stderr)
            continue
        yield from (result for result in results if result.checkpoint == checkpoint)
