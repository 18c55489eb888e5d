"""Simulates equal settings of which one lost its worst runs: do its survivors win?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from lmtrain.benchmark.verdicts.case import Case, Row, share_at_most
from lmtrain.benchmark.verdicts.drawing import Design, draw_table, equal_design, group
from lmtrain.benchmark.verdicts.rules import ALPHA, claims_of_compare

LOST = 0.4  # of the runs of one setting
REASONS = ("diverged", "pruned", "unfinished")


@dataclass(frozen=True)
class Survivors:
    """Draws equal settings, takes the worst values from the first, and counts the claims that it is better."""

    design: Design
    reason: str

    def __call__(self, tables: int, generator: np.random.Generator) -> Sequence[Row]:
        wrong = []
        for _ in range(tables):
            first, *others = draw_table(self.design, generator)
            by_value = sorted(first.values, key=lambda seed: first.values[seed])
            lost = by_value[len(by_value) - round(LOST * len(by_value)) :]
            values = {seed: value for seed, value in first.values.items() if seed not in lost}
            if self.reason == "diverged":
                survivors = group(0, values, diverged=tuple(lost))
            else:
                survivors = group(0, values, missing=dict.fromkeys(lost, self.reason))
            better = claims_of_compare([survivors, *others]).better
            wrong.append(any(a == first.label for a, _ in better))
        return [share_at_most('false "better" for the survivors', wrong, ALPHA)]


def cases() -> list[Case]:
    found = []
    for reason, settings, seeds, correlation in product(REASONS, (2, 3, 10), (3, 5, 10), (0.0, 0.9)):
        design = equal_design(settings, seeds, correlation=correlation)
        size = f"{settings} settings × {seeds} seeds, correlation {correlation:g}"
        name = f"{size}, the worst 40% of one setting {reason}"
        typical = (settings, seeds, correlation) == (2, 10, 0)
        found.append(Case(name, Survivors(design, reason), 0.25 if settings == 10 else 1, typical))
    return found
