"""Which settings the outcome depends on, each taken alone: a rank test that needs neither replicates nor a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from lmtrain.files.numbers import is_number

MAX_LEVELS = 8  # more values of a number than this, as a random search has, are taken in quarters
FEWEST_RUNS = 5


@dataclass(frozen=True)
class Importance:
    """`share` of the differences in rank that the setting explains alone, 0 to 1; `p`, how often chance would."""

    key: str
    share: float
    p: float
    levels: int
    runs: int


def importance(key: str, values: Sequence[Any], outcomes: Sequence[float]) -> Importance | None:
    """Return Kruskal and Wallis' test, and eta² of its H as the share (Tomczak & Tomczak 2014).

    None where nothing can be said: fewer than five finite outcomes, a value for every run, or only one value.
    """
    finite = [(value, float(out)) for value, out in zip(values, outcomes, strict=True) if np.isfinite(out)]
    levels = _levels([value for value, _ in finite])
    groups = [[out for level, (_, out) in zip(levels, finite, strict=True) if level == one] for one in set(levels)]
    n, k = len(finite), len(groups)
    if n < FEWEST_RUNS or not 1 < k < n or len({out for _, out in finite}) == 1:
        return None
    h, p = stats.kruskal(*groups)
    return Importance(key, float(np.clip((h - k + 1) / (n - k), 0, 1)), float(p), k, n)


def _levels(values: Sequence[Any]) -> list[Any]:
    """Return what the values are compared as: themselves, or their quarter among many different numbers."""
    if len(set(map(repr, values))) > MAX_LEVELS and all(is_number(value) for value in values):
        edges = np.quantile(np.array(values, float), [0.25, 0.5, 0.75])
        return [int(quarter) for quarter in np.searchsorted(edges, np.array(values, float))]
    return [repr(value) for value in values]
