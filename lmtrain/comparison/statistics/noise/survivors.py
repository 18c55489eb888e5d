"""Compares settings of which runs have no value: diverged runs have the worst rank, and missing ones make doubtful."""

import math

import numpy as np
import scipy

from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.significance import mean_ranks

MOST_EXACT = 60  # runs of both settings together, up to which all ways to divide the ranks are counted


def rank_test(a: ReplicateGroup, b: ReplicateGroup, sign: int) -> float:
    """Return the two-sided p-value of the rank sums of two settings in which diverged runs have the worst rank.

    It is exact (all ways to divide the ranks, with ties). Seeds are not paired: where equal seeds give similar values,
    the test is too strict rather than too lax.
    """
    ranks, first = _ranks_of_both(a, b, sign)
    twice = np.rint(2 * ranks).astype(int)  # ties have half ranks
    n = len(twice)
    if not 0 < first < n:
        return 1.0
    mean = first * (n + 1)  # of twice the rank sum
    distance = abs(int(twice[:first].sum()) - mean)
    if n > MOST_EXACT:
        variance = first * (n - first) / (n - 1) * float(np.mean((twice - (n + 1)) ** 2))
        return float(scipy.special.erfc((distance - 1) / math.sqrt(2 * variance))) if variance else 1.0
    # ways[j, s]: the number of ways to choose j runs whose doubled ranks have the sum s
    ways = np.zeros((first + 1, int(twice.sum()) + 1))
    ways[0, 0] = 1
    for rank in twice:
        ways[1:, rank:] += ways[:-1, : ways.shape[1] - rank].copy()
    sums = np.arange(ways.shape[1])
    return float(ways[first, np.abs(sums - mean) >= distance].sum() / ways[first].sum())


def mean_rank_is_better(a: ReplicateGroup, b: ReplicateGroup, sign: int) -> bool:
    """Return whether the first setting has the better mean rank, diverged runs counted as the worst."""
    ranks, first = _ranks_of_both(a, b, sign)
    return bool(ranks[:first].mean() < ranks[first:].mean())


def _ranks_of_both(a: ReplicateGroup, b: ReplicateGroup, sign: int) -> tuple[np.ndarray, int]:
    """Return the ranks of the runs of both settings, diverged runs last, and how many of them are the first one's."""
    values = [sign * value for group in (a, b) for value in (*group.sample, *[sign * math.inf] * len(group.diverged))]
    return mean_ranks(values), len(a.values) + len(a.diverged)


def runs_in_all(group: ReplicateGroup) -> int:
    return len(group.values) + len(group.diverged) + len(group.missing)


def without_value(group: ReplicateGroup) -> str:
    """Return, for example, `2 of 5 runs of lr=0.1 have no value (1 diverged, 1 pruned)`."""
    reasons: dict[str, int] = {}
    for status in (*["diverged"] * len(group.diverged), *group.missing.values()):
        reasons[status] = reasons.get(status, 0) + 1
    count = sum(reasons.values())
    why = ", ".join(f"{number} {status}" for status, number in reasons.items())
    has = "has" if count == 1 else "have"
    return f"{count} of {runs_in_all(group)} runs of {group.label} {has} no value" + (f" ({why})" if why else "")


def diverged_words(group: ReplicateGroup) -> str:
    """Return, for example, `4 of 5 runs of lr=0.1 diverged` or `all 5 runs of lr=0.1 diverged`."""
    diverged, total = len(group.diverged), runs_in_all(group)
    if diverged == total:
        return f"{'the only run' if total == 1 else f'all {total} runs'} of {group.label} diverged"
    return f"{diverged} of {total} runs of {group.label} diverged"
