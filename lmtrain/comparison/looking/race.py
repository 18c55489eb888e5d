"""Judges settings so that one may look after every seed: keep, drop, or run one more seed of each."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.sequential import half_width_at_any_time, log_e_value_two_sided, running_log_e_values
from lmtrain.comparison.statistics.significance import ALPHA


@dataclass(frozen=True)
class Pair:
    """Two settings compared by the seeds that both have.

    Attributes:
        better: The setting whose mean over these seeds is better.
        worse: The other one.
        seeds: The number of seeds that both have.
        difference: By how much `better` is better, at least 0.
        half_width: The half width of the interval of the difference. The intervals of all pairs hold at once, after any
            number of looks.
        log_evidence: The natural logarithm of the evidence that the settings differ.
        needed: The evidence that is needed: the number of pairs divided by alpha.
        survivors: True if more seeds of `better` than of `worse` have no value, so that it may only look better.
    """

    better: ReplicateGroup
    worse: ReplicateGroup
    seeds: int
    difference: float
    half_width: float
    log_evidence: float
    needed: float
    survivors: bool

    @property
    def is_decided(self) -> bool:
        return self.difference > self.half_width and not self.survivors

    @property
    def p(self) -> float:
        """Return the probability, corrected for all pairs, of such evidence between equal settings, at any time."""
        return min(1.0, self.needed * ALPHA * math.exp(-self.log_evidence))


@dataclass(frozen=True)
class Race:
    """The verdicts on settings.

    Attributes:
        keep: The setting that is better than all others; None if that is not decided.
        more: The settings of which one more seed is needed, best first.
        dropped: For each setting that is dropped, the pair with the most evidence against it.
        pairs: All pairs, by the places of their settings in the given order.
    """

    keep: ReplicateGroup | None
    more: Sequence[ReplicateGroup]
    dropped: Sequence[Pair]
    pairs: dict[tuple[int, int], Pair]


def race(groups: Sequence[ReplicateGroup], *, sign: int = 1, alpha: float = ALPHA) -> Race:
    """Judge settings; after any number of looks, the probability of any wrong drop or keep is at most `alpha`.

    Args:
        groups: The settings. Those without any value, because all their runs diverged, get no verdict.
        sign: 1 if lower values are better, −1 if higher values are.
        alpha: The probability of an error, over all pairs and all looks.
    """
    places = list(itertools.combinations(range(len(groups)), 2))
    pairs = {place: compare_pair(groups[place[0]], groups[place[1]], sign, alpha, len(places)) for place in places}
    against: dict[int, Pair] = {}
    for (first, second), pair in pairs.items():
        loser = second if pair.worse is groups[second] else first
        if pair.is_decided and (loser not in against or against[loser].log_evidence < pair.log_evidence):
            against[loser] = pair
    if len(against) == sum(bool(group.values) for group in groups):  # a circle of three settings, by chance
        against = {}
    left = [place for place, group in enumerate(groups) if place not in against and group.values]
    left.sort(key=lambda place: sign * groups[place].mean)
    keep = groups[left[0]] if len(left) == 1 and len(groups) > 1 else None
    more = [] if keep is not None else [groups[place] for place in left]
    return Race(keep, more, list(against.values()), pairs)


def compare_pair(a: ReplicateGroup, b: ReplicateGroup, sign: int, alpha: float, pairs: int) -> Pair:
    """Compare two settings by the seeds that both have, as one of a number of pairs (Bonferroni)."""
    differences = [sign * (b.values[seed] - value) for seed, value in a.values.items() if seed in b.values]
    mean = float(np.mean(differences)) if differences else 0.0
    better, worse = (a, b) if mean >= 0 else (b, a)
    return Pair(
        better=better,
        worse=worse,
        seeds=len(differences),
        difference=abs(mean),
        half_width=half_width_at_any_time(differences, alpha / pairs),
        log_evidence=log_e_value_two_sided(differences),
        needed=pairs / alpha,
        survivors=better.missing_share > worse.missing_share,
    )


def first_verdict(values: np.ndarray, looks: Sequence[int], *, alpha: float = ALPHA) -> np.ndarray:
    """Return, for each simulation, the number of seeds at the first look that drops a setting; 0 if none does.

    Args:
        values: (simulations, settings, seeds); runs with the same seed have the same last index.
        looks: The numbers of seeds at which one looks, each at least 2.
        alpha: The probability of an error that the verdicts promise. If all settings are equal, every drop is an error.
    """
    places = list(itertools.combinations(range(values.shape[1]), 2))
    found = np.zeros((len(values), len(looks)), dtype=bool)
    for a, b in places:
        evidence = running_log_e_values(values[:, a] - values[:, b], two_sided=True)
        found |= evidence[:, np.asarray(looks) - 1] > math.log(len(places) / alpha)
    return np.where(found.any(axis=1), np.asarray(looks)[found.argmax(axis=1)], 0)
