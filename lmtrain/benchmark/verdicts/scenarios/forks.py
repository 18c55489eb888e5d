"""Simulates forks of a few parents: are branches of one trunk taken for independent runs?"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lmtrain.benchmark.verdicts.case import Case, Row, share_at_most, shown_share
from lmtrain.benchmark.verdicts.rules import ALPHA
from lmtrain.benchmark.verdicts.run_folders import claims_of_runs, losses_at, write_run

STEPS = (50, 100, 150, 200)
FORK_STEP = 100
AFTER = (150, 200)
LOSS_SD = 0.05
SETTINGS = (1e-3, 2e-3)
SEEDS = 5


@dataclass(frozen=True)
class Forks:
    """Draws two equal settings whose runs were forked from parents, and counts the false claims.

    Attributes:
        parents: The number of parents of each setting.
        shared: Whether both settings were forked from the same parents.
        fresh: Whether the second setting has runs from scratch, as many as the first has forks.
        with_parents: Whether the parents are compared as well, as one more setting.
        inherited: The share of the variance that a fork has from its parent.
        difference: The true difference of the settings, in standard deviations.
    """

    parents: int
    shared: bool = False
    fresh: bool = False
    with_parents: bool = False
    inherited: float = 0.8
    difference: float = 0.0

    def __call__(self, tables: int, generator: np.random.Generator) -> Sequence[Row]:
        claimed = []
        for _ in range(tables):
            with tempfile.TemporaryDirectory() as folder:
                claimed.append(bool(claims_of_runs(self.write(Path(folder), generator)).better))
        if self.difference:
            return [shown_share("true differences found", claimed)]
        return [share_at_most('false "better" for forks', claimed, ALPHA)]

    def write(self, folder: Path, generator: np.random.Generator) -> list[Path]:
        """Write all runs; return the folders of the runs to compare."""
        found = []
        parents: list[tuple[Path, float]] = []
        for number, lr in enumerate(SETTINGS):
            if not (parents and self.shared):
                parents = [
                    self._parent(folder, len(parents) + seed, SETTINGS[0] if self.shared else lr, generator)
                    for seed in range(self.parents)
                ]
            for seed in range(SEEDS):
                own = float(generator.standard_normal())
                place = folder / f"{number}-{seed}"
                parent, inherited = parents[seed % self.parents]
                if self.fresh and number:
                    losses = losses_at(STEPS, 3 + LOSS_SD * own)
                    found.append(write_run(place, seed=100 + seed, lr=lr, steps=STEPS, losses=losses))
                    continue
                value = np.sqrt(self.inherited) * inherited + np.sqrt(1 - self.inherited) * own
                losses = losses_at(STEPS, 3 + LOSS_SD * (value + number * self.difference))[-len(AFTER) :]
                run = write_run(
                    place, seed=100 + seed, lr=lr, steps=AFTER, losses=losses, fork=parent, fork_step=FORK_STEP
                )
                found.append(run)
        return [*found, *(parent for parent, _ in parents)] if self.with_parents else found

    def _parent(self, folder: Path, seed: int, lr: float, generator: np.random.Generator) -> tuple[Path, float]:
        """Write a parent, which goes on after the forks have left it; return what it hands down to them."""
        inherited, own = map(float, generator.standard_normal(2))
        value = np.sqrt(self.inherited) * inherited + np.sqrt(1 - self.inherited) * own
        place = folder / "parents" / str(seed)
        losses = losses_at(STEPS, 3 + LOSS_SD * value)
        return write_run(place, seed=seed, lr=lr, steps=STEPS, losses=losses), inherited


SHARED = Forks(5, shared=True, with_parents=True)


def cases() -> list[Case]:
    simulations = {
        "5 forks of one parent for each of 2 settings": Forks(1),
        "5 forks of one parent against 5 runs from scratch": Forks(1, fresh=True),
        "forks of 2 parents for each of 2 settings": Forks(2),
        "2 settings forked from the same 5 parents": SHARED,
        "2 settings forked from the same 5 parents, 1 SD apart": replace(SHARED, difference=1),
    }
    return [
        Case(name, simulation, 0.1, typical=simulation in (Forks(1), SHARED))
        for name, simulation in simulations.items()
    ]
