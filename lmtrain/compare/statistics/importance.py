"""Measures how much the outcome depends on each setting alone, with a rank test that needs no replicates or model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from lmtrain.files.numbers import is_number

MAX_LEVELS = 8  # more different numbers than this, as in a random search, are grouped by quartile
FEWEST_RUNS = 5


@dataclass(frozen=True)
class Importance:
    """The importance of one setting.

    `share` (0 to 1) is the share of the variation in rank that the setting explains alone. `p` is the probability of
    so large a share by chance. `levels` is the number of values compared, `runs` the number of runs.
    """

    key: str
    share: float
    p: float
    levels: int
    runs: int


def importance(key: str, values: Sequence[Any], outcomes: Sequence[float]) -> Importance | None:
    """Return a setting's importance: p of the Kruskal–Wallis test, and eta² of its H (Tomczak & Tomczak 2014).

    Return None if that cannot be calculated: with fewer than five finite outcomes, a different value in every run, only
    one value, or equal outcomes.
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
    """Return the level of each value: the value itself or, with many different numbers, its quartile."""
    if len(set(map(repr, values))) > MAX_LEVELS and all(is_number(value) for value in values):
        edges = np.quantile(np.array(values, float), [0.25, 0.5, 0.75])
        return [int(quarter) for quarter in np.searchsorted(edges, np.array(values, float))]
    return [repr(value) for value in values]
