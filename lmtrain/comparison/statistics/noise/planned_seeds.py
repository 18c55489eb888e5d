"""Calculates, from runs that exist, how many seeds a comparison needs that is planned and looked at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.noise.model import fit_noise
from lmtrain.comparison.statistics.noise.power import POWER, power, seeds_needed
from lmtrain.comparison.statistics.sequential import running_log_e_values
from lmtrain.comparison.statistics.significance import ALPHA

CONFIDENCE = 0.8  # of the interval of the noise: in nine cases of ten, the noise is below its upper limit
FEWEST_SEEDS = 3  # two seeds do not show the noise of a setting
MAX_PLANNED = 1000
SIMULATIONS = 400
QUANTILES = (np.arange(50) + 0.5) / 50


@dataclass(frozen=True)
class PairNoise:
    """The standard deviation of the difference between two settings with the same seed.

    Attributes:
        sd: The standard deviation.
        df: Its degrees of freedom.
        settings: The number of settings that it is from.
        paired: False if the settings have too few seeds in common, so that their noise was added as if it were
            independent; equal seeds usually have less.
    """

    sd: float
    df: int
    settings: int
    paired: bool

    def limits(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Return the interval of the true standard deviation, from the chi-square distribution."""
        low, high = ((1 + side * confidence) / 2 for side in (-1, 1))
        return (
            self.sd * math.sqrt(self.df / scipy.special.chdtri(self.df, low)),
            self.sd * math.sqrt(self.df / scipy.special.chdtri(self.df, high)),
        )


@dataclass(frozen=True)
class PlannedSeeds:
    """The number of seeds of each setting with which a true difference is detected in four cases of five.

    Attributes:
        difference: The difference to detect.
        settings: The number of settings; every pair is tested.
        noise: The noise that the numbers are from.
        low, middle, high: The number if the noise is at the lower limit of its interval, as estimated, and at the upper
            limit. None means more than `MAX_PLANNED`.
        power_of_middle: The probability of detecting the difference with the middle number, over all noises that are
            compatible with the estimate: less than 80%, because the noise may be larger than the estimate.
    """

    difference: float
    settings: int
    noise: PairNoise
    low: int | None
    middle: int | None
    high: int | None
    power_of_middle: float

    @property
    def any_time(self) -> int | None:
        """Return the mean number of seeds until a test for any number of looks detects it; None as above."""
        return any_time_seeds(self.difference / self.noise.sd, self.settings * (self.settings - 1) // 2)


def pair_noise(groups: Sequence[ReplicateGroup]) -> PairNoise | None:
    """Return the noise of differences between settings; None if no setting has two seeds.

    It is that of the model with which the settings are compared (`fit_noise`), and assumed to be equal for all pairs.
    """
    model = fit_noise([group for group in groups if group.values])
    return None if model is None else PairNoise(math.sqrt(2) * model.sd, model.df, len(groups), model.paired)


def planned_seeds(difference: float, noise: PairNoise, settings: int) -> PlannedSeeds:
    """Return how many seeds each setting needs, as a range.

    Args:
        difference: The true difference to detect, above 0.
        noise: The noise of differences, above 0.
        settings: The number of settings that will be compared, at least 2.
    """
    low, high = noise.limits()
    fewest, middle, most = (_seeds(difference, sd, settings) for sd in (low, noise.sd, high))
    sds = noise.sd * np.sqrt(noise.df / scipy.special.chdtri(noise.df, QUANTILES))
    expected = np.mean([_power(difference, float(sd), middle or MAX_PLANNED, settings) for sd in sds])
    return PlannedSeeds(difference, settings, noise, fewest, middle, most, float(expected))


def any_time_seeds(effect: float, pairs: int) -> int | None:
    """Return the mean number of seeds at which a test for any number of looks detects a difference, by simulation.

    Args:
        effect: The difference, in units of the standard deviation of differences.
        pairs: The number of pairs of settings, for which the test is corrected.
    """
    seeds = MAX_PLANNED if effect < 0.5 else MAX_PLANNED // 5
    noise = np.random.default_rng(0).standard_normal((SIMULATIONS, seeds))
    reached = running_log_e_values(noise + effect, two_sided=True) > math.log(pairs / ALPHA)
    if not reached.any(axis=1).mean() > 0.9:  # the mean would be that of the lucky ones
        return None
    return round(float(np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, seeds).mean()))


def _seeds(difference: float, sd: float, settings: int) -> int | None:
    if _power(difference, sd, MAX_PLANNED, settings) < POWER:
        return None
    needed = seeds_needed(difference, sd, settings=settings)
    return needed and max(needed, FEWEST_SEEDS)


def _power(difference: float, sd: float, seeds: int, settings: int) -> float:
    """Return the power of the test; 1 where the noise is so small that the distribution can't be calculated."""
    found = power(difference, sd, seeds, settings=settings)
    return 1.0 if math.isnan(found) else found
