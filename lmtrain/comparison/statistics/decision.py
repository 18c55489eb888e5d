"""Decides from pairs of runs with equal seeds: keep the challenger, drop it, or run one more seed of both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lmtrain.comparison.statistics.sequential import FEWEST_DIFFERENCES, bound_at_any_time, log_e_value

Verdict = Literal["keep", "drop", "more"]
Reason = Literal["better", "worse", "too little", "no effect", "undecided"]


@dataclass(frozen=True)
class Decision:
    """What the pairs say after any number of looks.

    Attributes:
        verdict: `keep` if the challenger is better, `drop`, or `more` for one more pair.
        log_evidence: The natural logarithm of the evidence that the challenger is better; `keep` needs −log(alpha).
        interval: The lower and upper limit of the mean difference. Each holds at any time, alone, with a probability of
            at least 1 − alpha. Without a margin, the verdict is `keep` exactly where the lower limit is above zero.
        reason: Why: `better`; `worse`, or improved by `too little` (less than the margin); `no effect` if every pair is
            equal; `undecided`.
    """

    verdict: Verdict
    log_evidence: float
    interval: tuple[float, float]
    reason: Reason


def decide_pair(
    differences: Sequence[float], *, alpha: float, margin: float = 0.0, drop_alpha: float | None = None
) -> Decision:
    """Decide whether a challenger is better than a baseline; one may look after every pair, and stop at any time.

    Args:
        differences: For each seed, the baseline's value minus the challenger's, oriented so that a positive difference
            means that the challenger is better.
        alpha: The largest probability of ever keeping a challenger that is not better.
        margin: The smallest improvement that matters. The challenger is dropped as soon as its improvement is surely
            smaller, even if it is above zero; with 0, only if it is clearly worse.
        drop_alpha: The largest probability of ever dropping a challenger that improves by the margin or more; None
            means alpha.
    """
    values = [float(value) for value in differences]
    evidence = log_e_value(values)
    mean = float(np.mean(values)) if values else 0.0
    below = bound_at_any_time(values, alpha)
    interval = (mean - below, mean + below) if math.isfinite(below) else (-math.inf, math.inf)
    most = interval[1] if drop_alpha is None else mean + bound_at_any_time(values, drop_alpha)
    verdict: Verdict = "more"
    reason: Reason = "undecided"
    if len(values) >= FEWEST_DIFFERENCES and not any(values):
        verdict, reason = "drop", "no effect"
    elif most < margin:
        verdict, reason = "drop", "worse" if most < 0 else "too little"
    elif interval[0] > 0:
        verdict, reason = "keep", "better"
    return Decision(verdict, evidence, interval, reason)
