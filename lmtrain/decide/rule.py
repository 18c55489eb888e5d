"""Judges a challenger after each pair of runs: keep, drop, one more pair, or undecided because the budget is spent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmtrain.comparison.looking.futility import best_reachable_log_e_value
from lmtrain.comparison.statistics.decision import decide_pair
from lmtrain.comparison.statistics.online_fdr import needed_log_evidence
from lmtrain.decide.ledger import DROP, UNDECIDED
from lmtrain.decide.pairs import UNITS, SeedPair, total_cost

MORE = "more"
# A drop can lose a true gain, but never makes a false one, so it needs less evidence than a keep.
DROP_LEVEL = 0.1
REASONS = {
    "better": "the evidence is enough",
    "worse": "it is clearly worse than the baseline",
    "too little": "its gain is smaller than the margin",
    "no effect": "the runs of both are equal",
    "hopeless": "the remaining pairs would hardly give enough evidence",
    "diverged": "a run of the challenger diverged, and the baseline's did not",
    "far behind": "a run of the challenger was so far behind that it was stopped",
    "budget": "the budget is spent",
    "undecided": "one more pair is needed",
}


@dataclass(frozen=True)
class Budget:
    """The most that may be spent on an idea: pairs, and seconds, tokens and FLOPs of all its runs together."""

    pairs: int
    seconds: float = math.inf
    tokens: float = math.inf
    flops: float = math.inf

    def pairs_in_all(self, pairs: Sequence[SeedPair]) -> int:
        """Return how many pairs there can be, if the next ones cost as much as these on average."""
        if not pairs:
            return self.pairs
        spent = total_cost(pairs)
        limits = {"seconds": self.seconds, "tokens": self.tokens, "flops": self.flops}
        counts = [limits[unit] / spent[unit] * len(pairs) for unit in UNITS if spent[unit] and limits[unit] < math.inf]
        return min(self.pairs, max(len(pairs), math.floor(min(counts, default=math.inf) if counts else self.pairs)))

    def recorded(self) -> dict[str, Any]:
        limits = {"seconds": self.seconds, "tokens": self.tokens, "flops": self.flops}
        return {"pairs": self.pairs, **{key: value for key, value in limits.items() if value < math.inf}}


@dataclass(frozen=True)
class Judgement:
    """What the pairs so far say.

    Attributes:
        verdict: `keep`, `drop`, `undecided` (the budget is spent) or `more`.
        reason: A key of `REASONS`.
        log_evidence: The natural logarithm of the evidence that the challenger is better.
        needed: The one that a keep needs.
        gain: The mean gain; None without a pair of which both runs have a value.
        least, most: The limits of the true gain, which hold at any time, each with a probability of 1 − the idea's
            level; None if there are too few pairs to give any.
    """

    verdict: str
    reason: str
    log_evidence: float
    needed: float
    gain: float | None
    least: float | None
    most: float | None

    def recorded(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "log_evidence": self.log_evidence,
            "needed_log_evidence": self.needed,
            "p": min(1.0, math.exp(-self.log_evidence)),
            "gain": self.gain,
            "interval": [self.least, self.most],
        }


def judge(pairs: Sequence[SeedPair], *, level: float, margin: float, budget: Budget) -> Judgement:
    """Judge the challenger by the pairs in the order of their seeds.

    A run of the challenger that diverged, or was stopped because it was far behind, counts as worse than any value, so
    the challenger is dropped. A seed with which the baseline diverged is left out: if the two did not differ, either of
    them would be equally likely to diverge alone, and so this favours the baseline.
    """
    gains = [pair.gain for pair in pairs if pair.gain is not None]
    found = decide_pair(gains, alpha=level, margin=margin, drop_alpha=DROP_LEVEL)
    verdict: str = found.verdict
    reason: str = found.reason
    needed = needed_log_evidence(level)
    in_all = budget.pairs_in_all(pairs)
    lost = next((pair for pair in pairs if pair.challenger_lost), None)
    if lost is not None:
        verdict, reason = DROP, "diverged" if lost.statuses[1] == "diverged" else "far behind"
    elif verdict == MORE and len(pairs) >= in_all:
        verdict, reason = UNDECIDED, "budget"
    elif verdict == MORE and best_reachable_log_e_value(gains, in_all - (len(pairs) - len(gains))) < needed:
        verdict, reason = DROP, "hopeless"
    return Judgement(
        verdict=verdict,
        reason=reason,
        log_evidence=found.log_evidence,
        needed=needed,
        gain=float(np.mean(gains)) if gains else None,
        least=_finite(found.interval[0]),
        most=_finite(found.interval[1]),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
