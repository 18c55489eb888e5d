"""Simulates comparisons whose number of seeds is planned from a pilot study, and that are looked at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmtrain.benchmark.verdicts.case import Case, Row, share_at_least, share_at_most, shown_mean, shown_share
from lmtrain.benchmark.verdicts.drawing import draw_table, equal_design
from lmtrain.benchmark.verdicts.rules import ALPHA, claims_of_compare
from lmtrain.comparison.statistics.noise.planned_seeds import pair_noise, planned_seeds

PILOT_SEEDS = 5
POWER = 0.8  # that is planned for
MOST_SEEDS = 200


@dataclass(frozen=True)
class Planned:
    """Plans for a difference, from a pilot of two settings, then runs as many seeds and compares them once.

    Attributes:
        difference: The difference to plan for, in standard deviations between seeds.
        correlation: The share of the variance that comes from the seed.
        equal: Whether the settings are equal in truth.
    """

    difference: float
    correlation: float
    equal: bool = False

    def __call__(self, tables: int, generator: np.random.Generator) -> Sequence[Row]:
        found: dict[str, list[float]] = {"middle": [], "high": []}
        used = []
        for _ in range(tables):
            pilot = draw_table(equal_design(2, PILOT_SEEDS, correlation=self.correlation), generator)
            noise = pair_noise(pilot)
            assert noise is not None
            plan = planned_seeds(self.difference, noise, 2)
            for name, number in (("middle", plan.middle), ("high", plan.high)):
                seeds = min(number or MOST_SEEDS, MOST_SEEDS)
                means = (0.0, 0.0 if self.equal else self.difference)
                groups = draw_table(equal_design(2, seeds, correlation=self.correlation, means=means), generator)
                found[name].append(bool(claims_of_compare(groups).better))
            used.append(seeds)
        if self.equal:
            return [share_at_most('false "better" after the planned seeds', found["high"], ALPHA)]
        return [
            shown_share("difference found with the middle of the range", found["middle"]),
            share_at_least("difference found with the upper end of the range", found["high"], POWER),
            shown_mean("seeds at the upper end", used),
        ]


def cases() -> list[Case]:
    found = []
    for correlation in (0.0, 0.9):
        name = f"planned for 1 SD from 5 seeds of 2 settings, correlation {correlation:g}"
        found.append(Case(name, Planned(1, correlation), 0.1, typical=correlation == 0))
        found.append(Case(f"{name}, equal settings", Planned(1, correlation, equal=True), 0.1))
    return found
