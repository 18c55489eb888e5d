"""Fits the one model of noise that all comparisons use: value = setting + seed + rest."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from lmtrain.comparison.statistics.group import ReplicateGroup

LEAST_SHARE = 1 / 3  # of the degrees of freedom that must remain where the seeds' common part is taken out
SINGULAR = 1e-9  # an eigenvalue below is zero, relative to the number of runs
ROUNDING = 1e-12  # relative to the values; noise below it is rounding error
LARGEST_RATIO = 1e10  # of the variances of blocks and rest; with more, rounding errors decide the weights


@dataclass(frozen=True)
class NoiseModel:
    """The fitted model of settings with k means.

    Attributes:
        means: The mean of each setting, shape (k,). With missing seeds they are adjusted to equal seeds.
        sd: The standard deviation of the rest: the noise that remains in the difference of two runs with equal seeds,
            divided by √2. If the seeds' common part is not taken out, it is the noise between seeds.
        df: Its degrees of freedom.
        unit: The covariance of the means in units of sd², shape (k, k).
        paired: True if the part that runs with equal seeds have in common is taken out.
        ratio: The variance of what blocks have in common, in units of sd²; 0 if it is not taken out.
        residuals: The value of each setting in each block minus the setting's mean, 0 without a value; (k, blocks).
        present: True where a setting has a value in a block, shape (k, blocks).
        counts: The number of values of each setting, shape (k,).
        separate_sd: The noise between seeds, pooled over the settings, without any pairing.
    """

    means: np.ndarray
    sd: float
    df: int
    unit: np.ndarray
    paired: bool
    ratio: float
    residuals: np.ndarray
    present: np.ndarray
    counts: np.ndarray
    separate_sd: float

    @property
    def correlation(self) -> float | None:
        """Return the estimated correlation between settings at equal seeds; None if the runs cannot show it."""
        return self.ratio / (1 + self.ratio) if self.paired else None


def fit_noise(groups: Sequence[ReplicateGroup]) -> NoiseModel | None:
    """Fit the model to groups that have values; return None if no setting has two values.

    A block is a seed of settings that start alike (`ReplicateGroup.start`). The variance of the rest is that of the
    residuals after settings and blocks are both taken out, so that it is exact whatever the blocks are. The variance
    of the blocks, by Henderson's third method, sets the weights in the means if cells are missing. If too few seeds
    are shared to take the blocks out, the runs count as independent.
    """
    setting = np.repeat(np.arange(len(groups)), [len(group.values) for group in groups])
    names: dict[Hashable, int] = {}
    block = np.array([names.setdefault((group.start, seed), len(names)) for group in groups for seed in group.values])
    y = np.array([value for group in groups for value in group.values.values()], dtype=float)
    k, n = len(groups), len(y)
    if n == k:
        return None
    center = float(y.mean())
    y = y - center
    present = np.zeros((k, len(names)))
    present[setting, block] = 1
    counts, block_sizes = present.sum(1), present.sum(0)
    own_means = np.bincount(setting, y, k) / counts
    separate_squares = float(np.sum((y - own_means[setting]) ** 2))
    separate_sd = np.sqrt(separate_squares / (n - k))

    # Take out the blocks, then the settings: the normal equations of a design with two factors.
    within = np.diag(counts) - (present / block_sizes) @ present.T
    rest = y - (np.bincount(block, y) / block_sizes)[block]
    right = np.bincount(setting, rest, k)
    eigenvalues, vectors = np.linalg.eigh(within)
    kept = eigenvalues > SINGULAR * n
    rank = int(kept.sum())
    df = n - len(names) - rank
    squares = max(0.0, float(np.sum(rest**2) - np.sum((right @ vectors[:, kept]) ** 2 / eigenvalues[kept])))
    paired = df >= LEAST_SHARE * (n - k) and squares > df * (ROUNDING * float(np.abs(y + center).max())) ** 2
    if paired:
        variance = squares / df
        blocks_df = len(names) + rank - k
        block_variance = (separate_squares - squares - blocks_df * variance) / (n - k)
    else:
        df, variance, block_variance = n - k, separate_sd**2, 0.0
    ratio = min(max(0.0, block_variance) / variance, LARGEST_RATIO) if variance else 0.0
    weights = ratio / (1 + ratio * block_sizes)
    unit = np.linalg.inv(np.diag(counts) - (present * weights) @ present.T)
    means = unit @ (np.bincount(setting, y, k) - present @ (weights * np.bincount(block, y)))
    residuals = np.zeros((k, len(names)))
    residuals[setting, block] = y - means[setting]
    return NoiseModel(
        means=means + center,
        sd=float(np.sqrt(variance)),
        df=df,
        unit=unit,
        paired=bool(paired),
        ratio=ratio,
        residuals=residuals,
        present=present > 0,
        counts=counts,
        separate_sd=float(separate_sd),
    )
