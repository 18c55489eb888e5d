"""Simulates campaigns of 200 ideas without effect and 20 with one: how many of the ideas kept are false?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmtrain.benchmark.campaign import STRATEGIES, simulate_campaigns
from lmtrain.benchmark.verdicts.case import Case, Row
from lmtrain.compare.statistics.online_fdr import FDR_LEVEL

PROMISED = "decide"


@dataclass(frozen=True)
class Campaign:
    """Simulates campaigns that are led by one rule."""

    strategy: str

    def __call__(self, tables: int, generator: np.random.Generator) -> Sequence[Row]:
        found = simulate_campaigns(self.strategy, campaigns=tables, seed=int(generator.integers(2**31)))
        limit = FDR_LEVEL if self.strategy == PROMISED else None
        return [
            Row("false-discovery rate", found.fdr, found.fdr_error, limit),
            Row(f"of {found.true_ideas} true ideas kept", found.true_kept, 0.0),
            Row(f"of {found.large_ideas} true ideas of 1 SD or more kept", found.large_kept, 0.0),
            Row("pairs of runs", found.pairs, 0.0),
        ]


def cases() -> list[Case]:
    return [Case(f"200 null and 20 true ideas, {rule}", Campaign(rule), 0.1, typical=True) for rule in STRATEGIES]
