"""Reads from the conclusions of `compare` what they claim, and defines the rule that most tools use."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from lmtrain.comparison.statistics.conclusions import Conclusions, conclude
from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.significance import holm_correction

ALPHA = 0.05
BETTER = re.compile(r"(\S+) is better than (\S+)")


@dataclass(frozen=True)
class Claims:
    """What is claimed of a table.

    Attributes:
        best: The setting that is ranked first.
        better: Each pair (a, b) of which is claimed that a is better than b.
        intervals: For each other setting, the interval of its true mean minus that of the best.
        among: The settings of which one is claimed to be the best.
        on_new_seeds: The mean that is expected of the best setting on new seeds; NaN if nothing is said.
    """

    best: str
    better: Sequence[tuple[str, str]]
    intervals: Mapping[str, tuple[float, float]]
    among: Sequence[str] = ()
    on_new_seeds: float = math.nan


Rule = Callable[[Sequence[ReplicateGroup]], Claims]


def claims_of_compare(groups: Sequence[ReplicateGroup]) -> Claims:
    """Return what `compare` claims."""
    return read_claims(conclude(groups))


def read_claims(conclusions: Conclusions) -> Claims:
    better = [pair for text in _sentences(conclusions) for pair in BETTER.findall(text)]
    intervals = {}
    for pair in conclusions.comparisons:
        value, half_width = -pair.difference.value, pair.difference.half_width
        if math.isfinite(half_width):
            intervals[pair.other.label] = (value - half_width, value + half_width)
    among = [group.label for group in conclusions.among]
    return Claims(conclusions.groups[0].label, better, intervals, among, conclusions.on_new_seeds)


def _sentences(conclusions: Conclusions) -> list[str]:
    """Return the sentences shown, and those of the pairs that the shown ones only count."""
    return list(dict.fromkeys([*conclusions.sentences, *(pair.sentence for pair in conclusions.comparisons)]))


def separate_tests(groups: Sequence[ReplicateGroup]) -> Claims:
    """Return the claims of separate Welch tests with Holm's correction for all pairs, on the seeds that have a value.

    Settings with a single run make no claim.
    """
    ranked = sorted((group for group in groups if len(group.values) > 1), key=lambda group: group.mean)
    n = np.array([len(group.values) for group in ranked], dtype=float)
    means = np.array([group.mean for group in ranked])
    parts = np.array([np.var(group.sample, ddof=1) for group in ranked]) / n
    first, second = np.triu_indices(len(ranked), 1)
    squares = parts[first] + parts[second]
    df = squares**2 / (parts[first] ** 2 / (n[first] - 1) + parts[second] ** 2 / (n[second] - 1))
    ps = 2 * special.stdtr(df, -np.abs(means[first] - means[second]) / np.sqrt(squares))
    corrected = holm_correction(ps)
    better, intervals = [], {}
    for other in range(1, len(ranked)):  # the pairs of the best come first
        half_width = float(special.stdtrit(df[other - 1], 1 - ALPHA / 2)) * math.sqrt(squares[other - 1])
        difference = float(means[other] - means[0])
        intervals[ranked[other].label] = (difference - half_width, difference + half_width)
        if corrected[other - 1] < ALPHA:
            better.append((ranked[0].label, ranked[other].label))
    return Claims(ranked[0].label if ranked else "", better, intervals)
