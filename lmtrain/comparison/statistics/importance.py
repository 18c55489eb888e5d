"""Measures how much the outcome depends on each setting alone, with a rank test that needs no replicates or model."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmtrain.comparison.statistics.significance import ALPHA, mean_ranks
from lmtrain.files.numbers import is_number

MAX_LEVELS = 8  # more different numbers than this, as in a random search, are grouped by quartile
FEWEST_GROUPS = 5
MAX_EXACT = 7  # outcomes whose permutations are all tried: 5,040
PERMUTATIONS = 1999
ROUNDING = 1e-9  # relative; statistics this close are equal


@dataclass(frozen=True)
class Importance:
    """The importance of one setting.

    Attributes:
        key: The setting's config key.
        share: The share (0 to 1) of the variation in rank that the setting explains alone.
        p: The probability of so large a share by chance.
        chance: The share that chance alone exceeds in one of twenty cases: a smaller one is no more than chance.
        levels: The number of values compared.
        runs: The number of outcomes.
    """

    key: str
    share: float
    p: float
    chance: float
    levels: int
    runs: int


def importance(key: str, values: Sequence[Any], outcomes: Sequence[float]) -> Importance | None:
    """Return a setting's importance: eta² of the Kruskal–Wallis H (Tomczak & Tomczak 2014), and p by permutation.

    `values` and `outcomes` have one item for each group of replicates: the mean over its seeds. Runs that share a
    setting are not independent, so that with one item for each run p would be far too small.

    p is exact for up to seven groups, and otherwise from 1,999 random permutations, always the same ones.

    Return None if that cannot be calculated: with fewer than five finite outcomes, a different value in every group,
    only one value, or equal outcomes.
    """
    finite = [(value, float(out)) for value, out in zip(values, outcomes, strict=True) if np.isfinite(out)]
    levels = np.unique(_levels([value for value, _ in finite]), return_inverse=True)[1] if finite else np.empty(0, int)
    n, k = len(finite), len(set(levels.tolist()))
    ranks = mean_ranks([out for _, out in finite]) if finite else np.empty(0)
    if n < FEWEST_GROUPS or not 1 < k < n or not np.ptp(ranks):
        return None
    shuffled = _permutations(n)
    drawn = _shares(ranks[shuffled], levels)
    share = float(_shares(ranks[None], levels)[0])
    above = int(np.sum(drawn >= share - ROUNDING * abs(share)))
    # With random permutations, the order that was observed counts as one of them.
    p = above / len(drawn) if n <= MAX_EXACT else (above + 1) / (len(drawn) + 1)
    chance = float(np.quantile(drawn, 1 - ALPHA, method="higher"))
    return Importance(key, max(0.0, min(1.0, share)), p, max(0.0, min(1.0, chance)), k, n)


def _shares(ranks: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return eta² of H, with the correction for ties, for each row of ranks (permutations, n)."""
    n, k = len(levels), int(levels.max()) + 1
    member = (levels[:, None] == np.arange(k)).astype(float)  # (n, k)
    means = ranks @ (member / member.sum(axis=0))
    between = ((means - ranks[0].mean()) ** 2) @ member.sum(axis=0)
    h = (n - 1) * between / np.sum((ranks[0] - ranks[0].mean()) ** 2)
    return np.asarray((h - k + 1) / (n - k))


def _permutations(n: int) -> np.ndarray:
    """Return rows of permutations of n places: all of them if they are few."""
    if n <= MAX_EXACT:
        return np.array(list(itertools.permutations(range(n))))
    return np.argsort(np.random.default_rng(n).random((PERMUTATIONS, n)), axis=1)


def _levels(values: Sequence[Any]) -> list[Any]:
    """Return the level of each value: the value itself or, with many different numbers, its quartile."""
    if len(set(map(repr, values))) > MAX_LEVELS and all(is_number(value) for value in values):
        edges = np.quantile(np.array(values, float), [0.25, 0.5, 0.75])
        return [int(quarter) for quarter in np.searchsorted(edges, np.array(values, float))]
    return [repr(value) for value in values]
