"""Simulates equal runs that are looked at in unequal ways: more evaluations, or more steps."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmtrain.benchmark.verdicts.case import Case, Row, share_at_most
from lmtrain.benchmark.verdicts.rules import ALPHA
from lmtrain.benchmark.verdicts.run_folders import claims_of_runs, losses_at, write_run

SEEDS = 5
SEED_SD, EVALUATION_SD = 0.02, 0.02
STEPS = 600


@dataclass(frozen=True)
class BestOfEvaluations:
    """Draws runs of two equal settings with unequal intervals of evaluation, and compares their best values."""

    intervals: tuple[int, int]

    def __call__(self, tables: int, generator: np.random.Generator) -> Sequence[Row]:
        wrong = []
        for _ in range(tables):
            with tempfile.TemporaryDirectory() as folder:
                runs = []
                for number, interval in enumerate(self.intervals):
                    steps = list(range(interval, STEPS + 1, interval))
                    for seed in range(SEEDS):
                        losses = losses_at(steps, 3 + SEED_SD * generator.standard_normal())
                        losses = losses + EVALUATION_SD * generator.standard_normal(len(steps))
                        place = Path(folder) / f"{number}-{seed}"
                        runs.append(write_run(place, seed=seed, lr=1e-3 * (number + 1), steps=steps, losses=losses))
                wrong.append(bool(claims_of_runs(runs, value="best").better))
        return [share_at_most('false "better" by the best value', wrong, ALPHA)]


def cases() -> list[Case]:
    return [
        Case(f"best of evaluations every {a} and every {b} steps", BestOfEvaluations((a, b)), 0.1, typical=a == 10)
        for a, b in ((10, 100), (50, 100), (100, 100))
    ]
