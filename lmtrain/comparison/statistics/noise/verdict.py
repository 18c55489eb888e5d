"""Defines the verdict about two groups, and how it was found."""

import math
from dataclasses import dataclass
from typing import Literal

from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.significance import MeanDifference

Verdict = Literal["better", "worse", "undecided", "none"]


@dataclass(frozen=True)
class GroupComparison:
    """A comparison of the reference (the best group, or the baseline) with another group.

    Attributes:
        other: The other group.
        difference: The reference's mean minus the other's. If runs diverged, it is that of the survivors.
        p: The p-value, corrected for the whole table.
        sentence: The verdict in words.
        verdict: `better` if the reference is better, `worse` if the other is (only with a baseline), `undecided` if
            chance may explain the difference, `none` if these runs allow no verdict.
        by_ranks: True if the verdict is from ranks in which diverged runs are the worst.
        p_same: With a margin, the corrected p-value against a difference of the margin or more, in both directions.
        p_no_worse: With a margin and a baseline, the one against the other group being worse by the margin or more.
    """

    other: ReplicateGroup
    difference: MeanDifference
    p: float
    sentence: str
    verdict: Verdict = "undecided"
    by_ranks: bool = False
    p_same: float = math.nan
    p_no_worse: float = math.nan


@dataclass(frozen=True)
class Method:
    """How the verdicts were found.

    Attributes:
        test: The test of each pair.
        correction: What the p-values and intervals are corrected for; None for a single pair.
        alpha: The level of all verdicts together.
        noise_sd: The standard deviation of what is left after settings and seeds.
        df: Its degrees of freedom.
        paired: True if what equal seeds have in common was taken out.
        correlation: The estimated correlation of equal seeds; None if it was not estimated.
    """

    test: str
    correction: str | None
    alpha: float
    noise_sd: float
    df: int
    paired: bool
    correlation: float | None
