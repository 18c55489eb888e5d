"""Simulates settings without an effect of their own: does the table of effects, or the importance, find one?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from lmtrain.benchmark.verdicts.case import Case, Row, share_at_most, shown_mean
from lmtrain.benchmark.verdicts.rules import ALPHA
from lmtrain.comparison.statistics.conclusions import conclude
from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.importance import importance

UNEQUAL = {(0, 0): 8, (0, 1): 2, (1, 0): 8, (1, 1): 2}  # seeds of each cell: most where b is 0


@dataclass(frozen=True)
class MainEffects:
    """Draws a grid of two keys, `a` and `b`, without main effects, and counts the tables that name one.

    Attributes:
        seeds: The number of seeds of each cell of the grid.
        interaction: How far the best value of one key depends on the other, in standard deviations: by half of it, the
            cells on the diagonal of a 2 × 2 grid are better, and the others worse.
    """

    seeds: dict[tuple[int, int], int]
    interaction: float = 0.0

    def __call__(self, tables: int, generator: np.random.Generator) -> Sequence[Row]:
        wrong = []
        for _ in range(tables):
            groups = []
            for (a, b), count in self.seeds.items():
                mean = self.interaction / 2 * (1 if a == b else -1)
                values = dict(enumerate(map(float, mean + generator.standard_normal(count))))
                groups.append(ReplicateGroup(f"a={a} b={b}", {"a": f"a{a}", "b": f"b{b}"}, values, ()))
            wrong.append(any(effect.p is not None and effect.p < ALPHA for effect in conclude(groups).effects.effects))
        return [share_at_most("false main effect of any key", wrong, ALPHA)]


@dataclass(frozen=True)
class Importances:
    """Draws a random search without any effect, and measures the importances that it seems to show.

    Attributes:
        trials: The number of trials.
        keys: The number of keys.
        seeds: The number of seeds of each trial.
        between: The share of the variance that belongs to the trial, so that its seeds have it in common.
    """

    trials: int
    keys: int
    seeds: int = 1
    between: float = 0.0

    def __call__(self, tables: int, generator: np.random.Generator) -> Sequence[Row]:
        wrong, largest = [], []
        for _ in range(tables):
            levels = generator.integers(0, 4, (self.keys, self.trials))
            outcomes = np.sqrt(self.between) * generator.standard_normal((self.trials, 1))
            outcomes = outcomes + np.sqrt(1 - self.between) * generator.standard_normal((self.trials, self.seeds))
            found = [importance("key", own.tolist(), outcomes.mean(axis=1).tolist()) for own in levels]
            known = [one for one in found if one is not None]
            wrong += [one.p < ALPHA for one in known]
            largest.append(max((one.share for one in known), default=0.0))
        return [
            share_at_most("false importance of a key", wrong, ALPHA),
            shown_mean("largest importance shown", largest),
        ]


def cases() -> list[Case]:
    even = dict.fromkeys(product(range(2), range(2)), 3)
    three = dict.fromkeys(product(range(3), range(3)), 2)
    return [
        Case("grid of 2 × 2, 3 seeds each", MainEffects(even), typical=True),
        Case("grid of 3 × 3, 2 seeds each", MainEffects(three)),
        Case("grid of 2 × 2, 3 seeds each, interaction of 4 SD", MainEffects(even, 4)),
        Case("grid of 2 × 2, 8/2/8/2 seeds", MainEffects(UNEQUAL)),
        Case("grid of 2 × 2, 8/2/8/2 seeds, interaction of 4 SD", MainEffects(UNEQUAL, 4), typical=True),
        Case("20 trials of 4 keys", Importances(20, 4), 0.25, typical=True),
        Case("8 trials of 6 keys", Importances(8, 6), 0.25),
        Case("20 trials of 4 keys, 5 seeds of each trial", Importances(20, 4, 5, 0.8), 0.25),
    ]
