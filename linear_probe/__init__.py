"""Score representations with frozen features: logistic regression, k nearest neighbours, linear heads.

The package knows no model: features and labels go in, accuracies come out.

    import linear_probe

    table = linear_probe.score(train_x, train_y, test_x, test_y)   # numpy arrays (N, D) and (N,)
    print(table)                                                   # a Markdown table
    table.accuracies["lbfgs"]                                      # percent on the test arrays

    probe = linear_probe.LogisticProbe().fit(train_x, train_y)     # scikit-learn style
    probe.score(test_x, test_y)                                    # in [0, 1], as scikit-learn has it

`score` chooses hyper-parameters on a hold-out, fits once on training and hold-out images together, and predicts the
test labels once. The estimators have fixed hyper-parameters: use them inside scikit-learn's own pipelines and searches.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linear_probe.estimators import KNNProbe, LinearHead, LogisticProbe
    from linear_probe.feature_file import read_features, write_features
    from linear_probe.registry import PROTOCOLS
    from linear_probe.scoring import ScoreTable, score

__all__ = [
    "PROTOCOLS",
    "KNNProbe",
    "LinearHead",
    "LogisticProbe",
    "ScoreTable",
    "read_features",
    "score",
    "write_features",
]

MODULES = {
    "PROTOCOLS": "registry",
    "KNNProbe": "estimators",
    "LinearHead": "estimators",
    "LogisticProbe": "estimators",
    "ScoreTable": "scoring",
    "read_features": "feature_file",
    "score": "scoring",
    "write_features": "feature_file",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: torch, faiss and scikit-learn take seconds to import.

    Raises:
        AttributeError: the package exports no such name.
    """
    if name not in MODULES:
        raise AttributeError(f"module 'linear_probe' has no attribute {name!r}; it exports {', '.join(__all__)}")
    value = getattr(import_module(f"linear_probe.{MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, also those that are not imported yet."""
    return sorted({*globals(), *__all__})
