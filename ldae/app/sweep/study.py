"""Keep the trials of a sweep in an Optuna study on disk: continue trials, ask for new ones, and tell their outcomes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldae.app.sweep.space import Dimension
from ldae.core.errors import CheckpointError, UsageError
from ldae.core.rng import seed_of

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

STORAGE = "study.db"


def check_optuna() -> None:
    """Check that Optuna is installed.

    Raises:
        UsageError: it is not.
    """
    if not find_spec("optuna"):
        raise UsageError("a sweep needs optuna; pip install 'ldae[sweep]'")


class SweepStudy:
    """Study on disk that maximises an accuracy; one process at a time uses it.

    Every proposal is a function of the seed, the number of its trial and the trials before it, so that a sweep that
    was stopped proposes what an uninterrupted one would.

    Args:
        folder: folder of study.db.
        space: the searched keys.
        seed: seed of the proposals.
        startup: trials that are drawn at random (the tree-structured Parzen estimator of Bergstra et al., 2011, takes
            over from there), and that finish before any is pruned.
        warmup: evaluations before which none is pruned: the first ones of a run say little about its end.

    Raises:
        CheckpointError: the file is damaged or of another program.
    """

    def __init__(self, folder: Path, space: Sequence[Dimension], seed: int, startup: int, warmup: int):
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self.space, self.seed, self.startup = space, seed, startup
        pruner = optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup)
        path = folder / STORAGE
        try:
            self.study: Study = optuna.create_study(
                storage=f"sqlite:///{path.absolute()}",
                study_name="sweep",
                direction="maximize",
                pruner=pruner,
                load_if_exists=True,
            )
        except (SQLAlchemyError, RuntimeError, AssertionError, KeyError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{path} cannot be read as a study ({reason}); give another out=") from None

    @property
    def trials(self) -> list[FrozenTrial]:
        """Return all trials by their numbers."""
        return self.study.get_trials(deepcopy=False)

    def next(self, total: int) -> tuple[Trial, dict[str, Any]] | None:
        """Return a trial that was not finished, else a new one, and its values; None where `total` are finished."""
        import optuna

        trials = self.trials
        open_trials = [t for t in trials if not t.state.is_finished()]
        if not open_trials and len(trials) >= total:
            return None
        number = open_trials[0].number if open_trials else len(trials)
        seed = seed_of(self.seed, number) % 2**32
        self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.startup)
        # a trial of an ended process has no public way back into its study
        trial = optuna.Trial(self.study, open_trials[0]._trial_id) if open_trials else self.study.ask()
        return trial, {dimension.key: dimension.suggest(trial) for dimension in self.space}

    def report(self, trial: Trial, accuracies: Sequence[float]) -> None:
        """Store the online accuracies of a trial that are new, in percent, by the number of their evaluation.

        The first, before the first step, is left out: it is that of the patch embedding, and may be the highest, which
        the pruner compares.
        """
        known = self.trials[trial.number].intermediate_values
        for number, accuracy in enumerate(accuracies):
            if number and number not in known:
                trial.report(accuracy, number)

    def finish(self, trial: Trial, accuracy: float | None, **notes: Any) -> None:
        """Store the outcome of a trial.

        Args:
            trial: the trial.
            accuracy: hold-out accuracy in percent; None if it was pruned or failed.
            notes: attributes to store with it; one with `error` failed.
        """
        from optuna.trial import TrialState

        for key, value in notes.items():
            trial.set_user_attr(key, value)
        if accuracy is not None:
            self.study.tell(trial, accuracy)
        else:
            self.study.tell(trial, state=TrialState.FAIL if "error" in notes else TrialState.PRUNED)

    def completed(self) -> list[FrozenTrial]:
        """Return the trials with an accuracy, the best first."""
        from optuna.trial import TrialState

        done = [t for t in self.trials if t.state == TrialState.COMPLETE]
        return sorted(done, key=lambda t: (-(t.value or 0.0), t.number))


def state_name(trial: FrozenTrial) -> str:
    """Return the state of a trial in a table: done, pruned, failed or running."""
    names: Mapping[str, str] = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed"}
    return names.get(trial.state.name, "running")
