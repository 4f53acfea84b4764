"""Keep the results of baselines, so that the next probe of the same data does not measure them again."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from ldae.app.probing.encoders import ProbedEncoder
from ldae.app.probing.inputs import ProbeInputs
from ldae.app.probing.settings import ProbeSettings
from ldae.app.provenance import commit
from ldae.core.errors import Fault
from ldae.core.files import json_hash, write_text
from ldae.core.version import __version__
from ldae.engine.runtime import describe_hardware
from linear_probe.protocols import Protocol
from linear_probe.results import Result, read_results

FOLDER = "baselines"  # below the cache


class KeptBaselines:
    """Results of raw pixels, of whole-image PCA and of untrained networks, a file in the cache for each measurement.

    A result is kept for the same commit, hardware, data and weights, and it says where it was measured. Nothing is
    kept by a checkout with changes, which no commit describes, nor for measures whose data the fingerprint does not
    cover.

    Args:
        settings: settings of the probe.
        inputs: its data.
    """

    def __init__(self, settings: ProbeSettings, inputs: ProbeInputs):
        self.settings, self.inputs = settings, inputs
        self.commit = commit()

    def read(self, encoder: ProbedEncoder, protocol: Protocol) -> Result | None:
        """Return the kept result, with seed and config of this probe; None if there is none that is intact."""
        path = self._path(encoder, protocol)
        if path is None:
            return None
        try:
            (result,) = read_results(path)
        except (OSError, ValueError, TypeError):
            return None
        return replace(result, seed=self.inputs.seed, config=self.inputs.config)

    def write(self, encoder: ProbedEncoder, protocol: Protocol, result: Result) -> None:
        """Keep a result; where the cache cannot be written, warn and go on."""
        path = self._path(encoder, protocol)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, result.line() + "\n")
        except (OSError, Fault) as error:
            print(f"warning: the baseline is not kept for later probes ({error})", file=sys.stderr)

    def _path(self, encoder: ProbedEncoder, protocol: Protocol) -> Path | None:
        settings = self.settings
        if not encoder.kept_as or settings.folds or protocol.needs_outliers or self.commit.endswith("+"):
            return None
        of_measure = [protocol.name, protocol.source, settings.repetitions, settings.labels, settings.split]
        of_features = [encoder.kept_as, list(map(str, encoder.feature_keys)), settings.select, settings.seed]
        of_images = [settings.corruptions, self.inputs.fingerprint]
        where = [__version__, self.commit, describe_hardware(), self.inputs.device]
        return self.inputs.cache / FOLDER / f"{json_hash([of_measure, of_features, of_images, where])[:32]}.jsonl"
