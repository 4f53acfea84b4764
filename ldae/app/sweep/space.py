"""Read the searched keys of a sweep from the words of Hydra's grammar: interval, range, choice, tag, int."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from ldae.app.overrides import ASSIGNMENT, TEXTS
from ldae.core.errors import UsageError

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution

SEARCH = re.compile(r"\s*(tag|interval|range|choice|glob|sort|shuffle|int|float)\s*\(")
EXAMPLES = "interval(1,2), tag(log,interval(1e-3,1e-1)), int(interval(1,8)), range(1,10,3) or choice(a,b)"


@dataclass(frozen=True)
class Dimension:
    """Searched key of the config and its candidates.

    Attributes:
        key: dotted key, or name of a group.
        text: the candidates as they were typed.
        distribution: Optuna's distribution of the values; those of `choice` are texts as a command line has them.
    """

    key: str
    text: str
    distribution: BaseDistribution

    def word(self, value: Any) -> str:
        """Return the argument that sets the key to a value."""
        return f"{self.key}={value}"

    def suggest(self, trial: Trial) -> Any:
        """Return the value of a trial: the one it has, else the sampler's."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return trial.suggest_categorical(self.key, d.choices)
        if isinstance(d, IntDistribution):
            return trial.suggest_int(self.key, d.low, d.high, step=d.step, log=d.log)
        assert isinstance(d, FloatDistribution)
        return trial.suggest_float(self.key, d.low, d.high, step=d.step, log=d.log)

    @property
    def extremes(self) -> Sequence[Any]:
        """Return all values of a choice, the two ends of an interval."""
        d: Any = self.distribution
        return list(d.choices) if hasattr(d, "choices") else [d.low, d.high]


def read_space(argv: Sequence[str]) -> tuple[list[Dimension], list[str]]:
    """Return the searched keys of a command line, and its other words.

    Raises:
        UsageError: the candidates of a key cannot be read, or a key is named twice.
    """
    space: list[Dimension] = []
    others = []
    for word in argv:
        override = _searched(word)
        if override is None:
            others.append(word)
        else:
            space.append(_dimension(word, override))
    keys = [word.partition("=")[0] for word in [*others, *(f"{d.key}=" for d in space)]]
    for dimension in space:
        if keys.count(dimension.key) > 1:
            raise UsageError(f"{dimension.key} is given twice; give its candidates alone")
    return space, others


def _searched(word: str) -> Override | None:
    """Return the override of a word that names several values; None for another one.

    Raises:
        UsageError: the word begins as candidates do, and cannot be read.
    """
    assignment = ASSIGNMENT.fullmatch(word)
    if assignment is None or assignment[1] in TEXTS:
        return None
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        if SEARCH.match(assignment[2]):
            raise UsageError(f"{word!r} cannot be read; candidates are written {EXAMPLES}") from None
        return None
    return override if override.is_sweep_override() else None


def _dimension(word: str, override: Override) -> Dimension:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    key, _, text = word.partition("=")
    sweep: Any = override.value()
    is_log = "log" in getattr(sweep, "tags", ())
    if set(getattr(sweep, "tags", ())) - {"log"}:
        raise UsageError(f"{word!r}: the only tag is log, e.g. {key}=tag(log,interval(1e-3,1e-1))")
    try:
        if isinstance(sweep, IntervalSweep):
            is_int = isinstance(sweep.start, int) and isinstance(sweep.end, int)
            make: Any = IntDistribution if is_int else FloatDistribution
            return Dimension(key, text, make(sweep.start, sweep.end, log=is_log))
        if is_log or not isinstance(sweep, (ChoiceSweep, RangeSweep)):
            raise UsageError(f"{word!r}: candidates are written {EXAMPLES}")
        values = list(override.sweep_string_iterator())
        if len(set(values)) < len(values) or not values:
            raise UsageError(f"{word!r} must name different values")
        if isinstance(sweep, RangeSweep) and not sweep.shuffle:
            low, high = sorted((float(values[0]), float(values[-1])))
            step = abs(sweep.step)
            if all(isinstance(x, int) for x in (sweep.start, sweep.stop, sweep.step)):
                return Dimension(key, text, IntDistribution(int(low), int(high), step=int(step)))
            return Dimension(key, text, FloatDistribution(low, high, step=step))
        return Dimension(key, text, CategoricalDistribution(values))
    except ValueError as error:  # Optuna's checks of low, high and log
        raise UsageError(f"{word!r}: {error}") from None
