"""Simulates tables with one setting that is truly better: how often is it found, and by separate tests?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from lmtrain.benchmark.verdicts.case import Case, Row, ratio_at_least, shown_share
from lmtrain.benchmark.verdicts.drawing import Design, draw_table, equal_design
from lmtrain.benchmark.verdicts.rules import claims_of_compare, separate_tests

# Where most of the noise is common to equal seeds, this many times more true differences are found than by separate
# tests. Where nothing is common, there is nothing to gain from it.
TIMES = 4
PROMISED = (3, 3, 2.0, 0.9)  # settings, seeds, difference in SD, correlation


@dataclass(frozen=True)
class Power:
    """Draws tables in which the first setting is better by a difference, and counts the pairs in which it is found."""

    design: Design
    limit: float | None

    def __call__(self, tables: int, generator: np.random.Generator) -> Sequence[Row]:
        found: list[float] = []
        by_tests: list[float] = []
        others = [f"s{number}" for number in range(1, len(self.design.seeds))]
        for _ in range(tables):
            groups = draw_table(self.design, generator)
            for rule, counts in ((claims_of_compare, found), (separate_tests, by_tests)):
                better = rule(groups).better
                counts.append(float(np.mean([("s0", other) in better for other in others])))
        return [
            shown_share("true differences found", found),
            shown_share("found by separate tests", by_tests),
            ratio_at_least("ratio to separate tests", found, by_tests, self.limit),
        ]


def cases() -> list[Case]:
    found = []
    for settings, seeds, difference, correlation in product((2, 3, 10), (2, 3, 5, 10), (1.0, 2.0), (0.0, 0.5, 0.9)):
        design = equal_design(settings, seeds, correlation=correlation, means=(0.0, *[difference] * (settings - 1)))
        name = f"{settings} settings × {seeds} seeds, {difference:g} SD, normal, correlation {correlation:g}"
        limit = TIMES if (settings, seeds, difference, correlation) == PROMISED else None
        typical = (settings, seeds, difference) == PROMISED[:3]
        case = Case(name, Power(design, limit), 0.25 if settings == 10 else 1, typical)
        found.append(case)
    return found
