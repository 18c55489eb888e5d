"""Draws tables of settings and seeds whose true means and noise are known."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmtrain.comparison.statistics.group import ReplicateGroup

LOG_SD = 0.5  # of the lognormal noise: a skewness of 1.75


@dataclass(frozen=True)
class Design:
    """How a table is drawn.

    Attributes:
        seeds: The number of seeds of each setting.
        correlation: The share of the variance that comes from the seed and is equal in all settings.
        shape: The distribution of the noise: `normal`, `t3` or `lognormal`, each scaled to a variance of 1.
        sds: The standard deviation of each setting; None means 1 for all.
        means: The true mean of each setting; None means that all are equal.
        lost: The share of values that are missing at random; each setting keeps at least two.
    """

    seeds: Sequence[int]
    correlation: float = 0.0
    shape: str = "normal"
    sds: Sequence[float] | None = None
    means: Sequence[float] | None = None
    lost: float = 0.0


def equal_design(settings: int, seeds: int, **options: object) -> Design:
    """Return a design with the same number of seeds for each setting."""
    return replace(Design([seeds] * settings), **options)  # type: ignore[arg-type]


def draw_table(design: Design, generator: np.random.Generator) -> list[ReplicateGroup]:
    """Return one random table; the label of a setting is `s` and its number."""
    settings, most = len(design.seeds), max(design.seeds)
    of_seed = draw_noise(design.shape, most, generator)
    own = draw_noise(design.shape, settings * most, generator).reshape(settings, most)
    noise = np.sqrt(design.correlation) * of_seed + np.sqrt(1 - design.correlation) * own
    sds = np.ones(settings) if design.sds is None else np.asarray(design.sds)
    means = np.zeros(settings) if design.means is None else np.asarray(design.means)
    values = means[:, None] + sds[:, None] * noise
    groups = []
    for number, count in enumerate(design.seeds):
        seeds = np.arange(count)
        if design.lost:
            kept = max(2, int(np.sum(generator.random(count) >= design.lost)))
            seeds = np.sort(generator.permutation(count)[:kept])
        groups.append(group(number, {int(seed): float(values[number, seed]) for seed in seeds}))
    return groups


def group(number: int, values: dict[int, float], **options: object) -> ReplicateGroup:
    """Return the group of a setting whose seeds start as those of the other settings do."""
    return ReplicateGroup(f"s{number}", {"s": number}, values, (), **options)  # type: ignore[arg-type]


def draw_noise(shape: str, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return independent values of mean 0 and variance 1."""
    if shape == "t3":
        return np.asarray(generator.standard_t(3, count) / np.sqrt(3))
    if shape == "lognormal":
        values = np.exp(LOG_SD * generator.standard_normal(count))
        mean = np.exp(LOG_SD**2 / 2)
        return np.asarray((values - mean) / (mean * np.sqrt(np.exp(LOG_SD**2) - 1)))
    return generator.standard_normal(count)
