"""Pretrains l-DAE on the embedded digits with three seeds, probes each, and prints one table.

    python tools/demo.py [out=FOLDER]

What `make demo` runs. Minutes on two cores; running it again shows the table at once.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from _cli import run_tool

from ldae.errors import Fault, UsageError
from linear_probe.results import Result, markdown, read_results

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
NAMES = {"lbfgs": "linear", "knn": "kNN", "knn_whitened": "kNN, whitened"}


def main(words: Sequence[str]) -> None:
    """Three runs, three probes, one table."""
    if len(words) > 1 or (words and not words[0].startswith("out=")):
        raise UsageError("usage: python tools/demo.py [out=FOLDER]")
    out = Path(words[0][4:] if words else "runs/demo")
    print(f"pretraining and probing l-DAE on 8 x 8 digits, seeds {SEEDS}, two at a time, in {out}", flush=True)
    with ThreadPoolExecutor(2) as pool:
        found = [
            result for results in pool.map(lambda seed: scored(out / f"seed{seed}", seed), SEEDS) for result in results
        ]
    print(
        f"\nTop-1 accuracy on {found[0].images} test digits, percent, {len(SEEDS)} seeds (mean +- standard deviation)."
    )
    print("Every choice (layer, penalty, k) was made on a hold-out of train.\n")
    print(summary(found))
    print(f"\nCurves, pictures of denoising, the tokenizer's filters:  tensorboard --logdir {out}")


def scored(run: Path, seed: int) -> list[Result]:
    """Pretrains and probes one seed, if that is not done yet."""
    call("pretrain.py", "experiment=ldae/digits", f"seed={seed}", f"out={run}")
    print(f"seed {seed}: pretrained; probing it beside the floors", flush=True)
    results = run / "probe" / "results.jsonl"
    if not results.exists():
        call("probe.py", f"run={run}")
    return read_results(results)


def call(tool: str, *words: str) -> None:
    """Runs a tool on one core, the faster way for matrices this small; its failure is the demo's."""
    quiet = ("runtime.threads=1", "runtime.progress=false")
    done = subprocess.run([sys.executable, str(HERE / tool), *words, *quiet], stdout=subprocess.DEVNULL)
    if done.returncode:
        fault = Fault(f"{tool} ended with {done.returncode}")
        fault.code = done.returncode
        raise fault


def summary(results: Sequence[Result]) -> str:
    """Encoders as rows, protocols as columns, mean and deviation over seeds."""
    encoders = list(dict.fromkeys(r.encoder for r in results))
    rows = [["encoder", *NAMES.values()]]
    for encoder in encoders:
        cells = []
        for protocol in NAMES:
            values = [r.accuracy for r in results if (r.encoder, r.protocol) == (encoder, protocol)]
            cells.append(f"{statistics.mean(values):.1f} +- {statistics.stdev(values):.1f}" if values else "")
        rows.append([encoder, *cells])
    return markdown(rows)


if __name__ == "__main__":
    run_tool(main)
