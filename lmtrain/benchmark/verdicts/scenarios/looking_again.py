"""Simulates settings that are compared again and again as seeds are added."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from lmtrain.benchmark.verdicts.case import Case, Row, share_at_most, shown_mean, shown_share
from lmtrain.benchmark.verdicts.drawing import draw_noise, group
from lmtrain.benchmark.verdicts.rules import ALPHA, claims_of_compare
from lmtrain.comparison.looking.race import first_verdict
from lmtrain.comparison.looking.sentences import looking_again
from lmtrain.comparison.statistics.conclusions import conclude
from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.sequential import running_log_e_values

LONGEST = 60  # seeds


@dataclass(frozen=True)
class Seeds:
    """Draws the values of two settings, seed by seed.

    Attributes:
        difference: The true difference, in standard deviations of one run.
        correlation: The share of the variance that comes from the seed.
        shape: The distribution of the noise.
    """

    difference: float = 0.0
    correlation: float = 0.0
    shape: str = "normal"

    def draw(self, seeds: int, generator: np.random.Generator) -> np.ndarray:
        """Return the values, (setting, seed); the first setting is better by the difference."""
        common = np.sqrt(self.correlation) * draw_noise(self.shape, seeds, generator)
        own = draw_noise(self.shape, 2 * seeds, generator).reshape(2, seeds)
        return np.asarray(common + np.sqrt(1 - self.correlation) * own + np.array([[0.0], [self.difference]]))


@dataclass(frozen=True)
class AnytimeValid:
    """Looks after each pair with the anytime-valid test, until it says keep or drop (see `decision.py`)."""

    seeds: Seeds

    def __call__(self, tables: int, generator: np.random.Generator) -> Sequence[Row]:
        values = np.array([self.seeds.draw(LONGEST, generator) for _ in range(tables)])
        differences = values[:, 1] - values[:, 0]
        better, worse = (running_log_e_values(sign * differences) >= -math.log(ALPHA) for sign in (1, -1))
        decided = better | worse
        looks = np.where(decided.any(axis=1), decided.argmax(axis=1), LONGEST - 1)
        kept = better[np.arange(tables), looks].astype(float)
        if self.seeds.difference:
            return [shown_share("true difference kept", kept), shown_mean("seeds of each setting", looks + 1)]
        return [share_at_most('false "keep" within 60 looks', kept, ALPHA)]


@dataclass(frozen=True)
class RaceOfEqualSettings:
    """Looks at equal settings after each seed, until any of them is dropped."""

    settings: int
    shape: str

    def __call__(self, tables: int, generator: np.random.Generator) -> Sequence[Row]:
        size = tables * self.settings * LONGEST
        values = draw_noise(self.shape, size, generator).reshape(tables, self.settings, LONGEST)
        dropped = first_verdict(values, range(2, LONGEST + 1)) > 0
        return [share_at_most("false drop of a setting within 60 looks", dropped.astype(float), ALPHA)]


@dataclass(frozen=True)
class NaiveLooks:
    """Compares after each seed from the third on, until the sentence says "better": what no rule can allow."""

    seeds: Seeds
    longest: int = 20

    def __call__(self, tables: int, generator: np.random.Generator) -> Sequence[Row]:
        wrong = []
        for _ in range(tables):
            values = self.seeds.draw(self.longest, generator)
            looks = (claims_of_compare(_groups(values[:, :seeds])).better for seeds in range(3, self.longest + 1))
            wrong.append(any(looks))
        return [shown_share('false "better" when looking after each seed', wrong)]


@dataclass(frozen=True)
class AsToldTo:
    """Starts with a few seeds and adds one of each as long as the verdict asks for it."""

    seeds: Seeds
    first: int = 3
    longest: int = 30

    def __call__(self, tables: int, generator: np.random.Generator) -> Sequence[Row]:
        wrong = []
        for _ in range(tables):
            values = self.seeds.draw(self.longest, generator)
            for seeds in range(self.first, self.longest + 1):
                _, found = looking_again(conclude(_groups(values[:, :seeds])), sign=1)
                if not found.more:
                    break
            wrong.append(found.keep is not None)
        return [share_at_most('false "better" when adding the seeds asked for', wrong, ALPHA)]


def _groups(values: np.ndarray) -> list[ReplicateGroup]:
    return [group(number, {seed: float(value) for seed, value in enumerate(row)}) for number, row in enumerate(values)]


def cases() -> list[Case]:
    found = [
        Case("2 equal settings, a look after each of 20 seeds", NaiveLooks(Seeds()), 0.1, typical=True),
        Case("2 equal settings, 3 seeds and those that the sentence asks for", AsToldTo(Seeds()), 0.25, typical=True),
    ]
    for shape, correlation in product(("normal", "t3", "lognormal"), (0.0, 0.9)):
        name = f"2 equal settings, a look after each of 60 pairs, {shape}, correlation {correlation:g}"
        typical = (shape, correlation) == ("normal", 0.0)
        found.append(Case(name, AnytimeValid(Seeds(0, correlation, shape)), 0.5, typical))
    for settings, shape in product((3, 10), ("normal", "t3", "lognormal")):
        name = f"{settings} equal settings, a look after each of 60 seeds, {shape}"
        found.append(Case(name, RaceOfEqualSettings(settings, shape), 0.5, typical=(settings, shape) == (3, "normal")))
    for difference in (0.5, 1.0, 2.0):
        name = f"2 settings {difference:g} SD apart, a look after each pair"
        found.append(Case(name, AnytimeValid(Seeds(difference)), 0.5, typical=difference == 1))
    return found
