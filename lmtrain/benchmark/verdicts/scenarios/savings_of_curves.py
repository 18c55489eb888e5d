"""Simulates two settings' curves: does the interval of the steps saved hold?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmtrain.benchmark.verdicts.case import Case, Row, share_at_least
from lmtrain.benchmark.verdicts.drawing import group
from lmtrain.benchmark.verdicts.rules import claims_of_compare
from lmtrain.comparison.statistics.worth import SettingCurve, savings

STEPS = np.arange(50.0, 1001, 50)
SEED_SD = 0.03
SHAPES = {
    "a curve that falls to its end": 2 + 10 * STEPS**-0.5,
    "a curve that is flat at its end": 2.3 + 1.2 * (1 - STEPS / 1050) ** 2,
}


@dataclass(frozen=True)
class SavedSteps:
    """Draws curves of two settings; the second is worse by a constant, and the truth is read from the true curves.

    Attributes:
        shape: A key of `SHAPES`.
        seeds: The number of seeds of each setting.
        difference: The true difference, in standard deviations between seeds.
        evaluation_sd: The noise of a single evaluation, in standard deviations between seeds.
    """

    shape: str
    seeds: int
    difference: float
    evaluation_sd: float

    def __call__(self, tables: int, generator: np.random.Generator) -> Sequence[Row]:
        true_curve = SHAPES[self.shape]
        by = self.difference * SEED_SD
        true = savings(_curve(true_curve), _curve(true_curve + by), by, by, by)["step"].value
        held = []
        for _ in range(tables):
            shifts = SEED_SD * generator.standard_normal((2, self.seeds, 1))
            noise = self.evaluation_sd * SEED_SD * generator.standard_normal((2, self.seeds, len(STEPS)))
            values = true_curve + shifts + noise + np.array([0.0, by])[:, None, None]
            groups = [group(number, dict(enumerate(map(float, values[number, :, -1])))) for number in range(2)]
            claims = claims_of_compare(groups)
            ((low, high),) = claims.intervals.values()
            better = int(claims.best == "s1")
            curves = [_curve(own.mean(axis=0)) for own in values]
            # The truth for exchanged roles: what the worse setting "saves" is negative.
            wanted = 1 - 1 / (1 - true) if better else true
            saving = savings(curves[better], curves[1 - better], low, (low + high) / 2, high)["step"]
            held.append(saving.low <= wanted <= saving.high)
        return [share_at_least("interval of the steps saved holds", held, 0.95)]


def _curve(values: np.ndarray) -> SettingCurve:
    return SettingCurve({"step": STEPS}, values)


def cases() -> list[Case]:
    found = []
    for shape in SHAPES:
        for seeds in (3, 5, 10):
            for difference in (0.5, 2.0):
                for evaluation_sd in (0.0, 0.3, 1.0):
                    name = f"{shape}, {seeds} seeds, {difference:g} SD, noise of an evaluation {evaluation_sd:g} SD"
                    simulation = SavedSteps(shape, seeds, difference, evaluation_sd)
                    found.append(Case(name, simulation, 0.5, typical=(seeds, difference, evaluation_sd) == (5, 2, 0.3)))
    return found
