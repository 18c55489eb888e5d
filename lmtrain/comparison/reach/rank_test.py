"""Compares how soon settings reach a value: medians, their intervals and tests, from times that are only bracketed.

A run reaches a value between its last evaluation that is worse and the first that is not, so its time is known to lie
in an interval (L, R]. If it never reaches the value, R is infinite: the time is censored at the end of the run.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product

import numpy as np

from lmtrain.comparison.statistics.significance import ALPHA, Values

MOST_EXACT = 50_000  # more ways to deal the labels are sampled
SAMPLED = 20_000
MIN_PAIRS = 6  # with fewer, a test of pairs has no p below 0.05
EM_STEPS = 5_000
EM_TOLERANCE = 1e-10
PAIRED, UNPAIRED = "permutation test of ranks within seeds", "permutation test of ranks"

Interval = tuple[float, float]


@dataclass(frozen=True)
class ReachTimes:
    """When the seeds of one setting reach a value.

    Attributes:
        label: The setting in words.
        times: For each seed and each axis, such as `step`, the interval in which the value is reached.
        start: Equal for settings in which a seed gives the same weights and batches.
    """

    label: str
    times: Mapping[Hashable, Mapping[str, Interval]]
    start: Hashable = None

    def on(self, axis: str) -> list[Interval]:
        return [times[axis] for times in self.times.values()]


@dataclass(frozen=True)
class SettingReach:
    """The result for one setting.

    Attributes:
        label: The setting in words.
        seeds: The number of seeds.
        reached: How many of them reach the value.
        medians: For each axis, the interval that contains the median time; it has no end if fewer than half of the
            seeds reach the value.
        intervals: For each axis, the 95% confidence interval of the median; 0 to infinity with fewer than six seeds.
        p: The p-value of the comparison with the soonest setting, corrected for all pairs; None for that setting.
        test: The test that it comes from.
    """

    label: str
    seeds: int
    reached: int
    medians: Mapping[str, Interval]
    intervals: Mapping[str, Interval]
    p: float | None = None
    test: str = ""


def turnbull(intervals: Sequence[Interval]) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells (left, right] that can have probability, (K, 2), and their probabilities (Turnbull 1976).

    For times that are known or censored on the right, this is the estimate of Kaplan and Meier.
    """
    left, right = np.array(intervals, dtype=float).T
    # A cell begins at a left end that is followed by a right end. At equal places, a right end comes first, because
    # intervals contain their right end but not their left one.
    ends = sorted([(value, 1) for value in set(left.tolist())] + [(value, 0) for value in set(right.tolist())])
    cells = [(one[0], two[0]) for one, two in pairwise(ends) if one[1] == 1 and two[1] == 0]
    inside = np.array([(left <= low) & (high <= right) for low, high in cells]).T  # (n, K)
    shares = np.full(len(cells), 1 / len(cells))
    for _ in range(EM_STEPS):
        expected = inside * shares
        new = np.mean(expected / expected.sum(1, keepdims=True), axis=0)
        if np.max(np.abs(new - shares)) < EM_TOLERANCE:
            break
        shares = new
    return np.array(cells), shares


def survival(cells: np.ndarray, shares: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the estimated probability that the time is above each place, which is the end of an interval."""
    return np.asarray((shares * (cells[:, 0] >= places[:, None])).sum(1))


def median(intervals: Sequence[Interval]) -> Interval:
    """Return the cell in which the estimated probability to have reached the value becomes one half."""
    cells, shares = turnbull(intervals)
    place = int(np.argmax(np.cumsum(shares) >= 0.5 - 1e-6))
    low, high = cells[place].tolist()
    return low, high


def median_interval(intervals: Sequence[Interval], alpha: float = ALPHA) -> Interval:
    """Return a confidence interval of the median, by inverting the sign test.

    It assumes nothing about the distribution. A time whose interval contains a place counts against rejecting it, so
    censoring makes the interval longer, but never wrong.
    """
    n = len(intervals)
    left, right = np.array(intervals, dtype=float).T
    # With `few` or fewer of n on one side of a place, the place is rejected as the median.
    tails = np.cumsum([math.comb(n, k) / 2**n for k in range(n + 1)])
    few = int(np.sum(tails <= alpha / 2)) - 1
    if few < 0:
        return 0.0, math.inf
    # At most `few` times can be at or below a place that is at or below the (few + 1)-th smallest left end.
    return float(np.sort(left)[few]), float(np.sort(right)[n - few - 1])


def rank_scores(intervals: Sequence[Interval]) -> np.ndarray:
    """Return a score for each time, 1 (the first) to −1 (the last), with mean zero (Peto and Peto 1972; Fay 1996).

    For exact times these are ranks, and the test is that of Wilcoxon, Mann and Whitney. The scores of the log-rank test
    have a long tail on the late side, so that a setting of the same median but more noise looks later.
    """
    cells, shares = turnbull(intervals)
    left, right = np.array(intervals, dtype=float).T
    return np.asarray(survival(cells, shares, left) + survival(cells, shares, right) - 1)


def permutation_p(a: Values, b: Values, *, paired: bool) -> float:
    """Return the two-sided p-value of the difference of two groups of scores.

    It is the share of all ways to deal the labels that give a difference at least as large; of many ways, a sample.
    With `paired`, labels are dealt only inside pairs.
    """
    one, two = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    generator = np.random.default_rng(0)
    if paired:
        differences = one - two
        exact = 2 ** len(differences) <= MOST_EXACT
        signs = (
            np.array(list(product((1, -1), repeat=len(differences))))
            if exact
            else generator.choice((1, -1), (SAMPLED, len(differences)))
        )
        observed, dealt = differences.sum(), signs @ differences
    else:
        scores = np.concatenate([one, two])
        scores = scores - scores.mean()
        exact = math.comb(len(scores), len(one)) <= MOST_EXACT
        chosen = (
            np.array(list(combinations(range(len(scores)), len(one))))
            if exact
            else generator.random((SAMPLED, len(scores))).argsort(1)[:, : len(one)]
        )
        observed, dealt = scores[: len(one)].sum(), scores[chosen].sum(1)
    as_large = int(np.sum(np.abs(dealt) >= abs(observed) - 1e-9 * (1 + abs(observed))))
    return as_large / len(dealt) if exact else (as_large + 1) / (len(dealt) + 1)


def compare_times(a: ReachTimes, b: ReachTimes, axis: str) -> tuple[float, str]:
    """Return the p-value of the difference between two settings, and the test.

    Equal seeds are pairs if they give the same weights and batches and there are enough of them. Otherwise the test
    ignores what equal seeds have in common, which makes p too large rather than too small.
    """
    paired = a.start == b.start and a.times.keys() == b.times.keys() and len(a.times) >= MIN_PAIRS
    second = [b.times[seed][axis] for seed in a.times] if paired else b.on(axis)
    scores = rank_scores([*a.on(axis), *second])
    return permutation_p(scores[: len(a.times)], scores[len(a.times) :], paired=paired), PAIRED if paired else UNPAIRED


def reach_by_setting(settings: Sequence[ReachTimes], axis: str, axes: Sequence[str]) -> list[SettingReach]:
    """Return the settings from the soonest to the latest; p is corrected for all pairs (Bonferroni).

    Args:
        settings: The settings, each with at least one seed.
        axis: The axis on which they are compared.
        axes: The axes to report.
    """

    def lateness(each: ReachTimes) -> tuple[float, ...]:
        low, high = median(each.on(axis))
        return high, low, float(np.mean([not math.isfinite(end) for _, end in each.on(axis)]))

    ranked = sorted(settings, key=lateness)
    pairs = len(ranked) * (len(ranked) - 1) // 2
    found = []
    for each in ranked:
        p, test = (None, "") if each is ranked[0] else compare_times(ranked[0], each, axis)
        found.append(
            SettingReach(
                each.label,
                len(each.times),
                sum(math.isfinite(high) for _, high in each.on(axis)),
                {name: median(each.on(name)) for name in axes},
                {name: median_interval(each.on(name)) for name in axes},
                None if p is None else min(1.0, p * pairs),
                test,
            )
        )
    return found
