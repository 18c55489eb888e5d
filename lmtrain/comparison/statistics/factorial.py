"""Estimates contrasts of settings that were tried in all combinations, with the noise of the contrast itself.

Nothing is assumed that the runs cannot show: the effects of settings need not add up, values of a setting may differ in
noise, and the values of equal seeds may be correlated.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from lmtrain.comparison.statistics.group import ReplicateGroup

ROUNDING = 1e-12  # relative; any noise below it is rounding error
FEWEST = 2  # values that show their noise
NO_SHARED_SEEDS = "its values share no seed"
NO_SEPARATE_NOISE = (
    "one seed each, and a seed does not give the same weights and batches for its values, so that the luck of the "
    "seed cannot be told from its effect"
)
TOO_FEW_SEEDS = "no setting has several seeds"


@dataclass(frozen=True)
class Part:
    """An independent part of an estimate's covariance (q, q), estimated with `df` degrees of freedom."""

    covariance: np.ndarray
    df: int


@dataclass(frozen=True)
class Estimate:
    """The values (q,) of contrasts; `parts` add up to their covariance, and are empty if the noise is unknown.

    `why` says why the noise is unknown. `seeds` is True if the noise is that between seeds, and False if it is the
    variation of the contrast between the values of the other settings, for lack of several seeds.
    """

    values: np.ndarray
    parts: Sequence[Part]
    seeds: bool = True
    why: str = ""

    @property
    def covariance(self) -> np.ndarray:
        return np.asarray(np.sum([part.covariance for part in self.parts], axis=0))

    def of(self, weights: np.ndarray) -> "Estimate":
        """Return the estimate of linear combinations (r, q) of the contrasts."""
        parts = [Part(weights @ part.covariance @ weights.T, part.df) for part in self.parts]
        return Estimate(weights @ self.values, parts, self.seeds, self.why)


@dataclass(frozen=True)
class FTest:
    """An F statistic with its degrees of freedom, which need not be whole numbers."""

    f: float
    df: float
    df_noise: float
    p: float


def f_test(estimate: Estimate, scale: float) -> FTest | None:
    """Test whether all contrasts are zero; None if the noise is unknown, or no larger than rounding errors of `scale`.

    The contrasts must be orthonormal. F is their mean square divided by the mean of their variances. The degrees of
    freedom are those of Box (1954), as Brunner, Dette & Munk (1997) use them: the F distribution with them has the
    statistic's mean and variance whatever the variances and correlations. In a randomised block design it is the
    analysis of variance with Greenhouse and Geisser's correction. With several contrasts, the square of a variance
    that was estimated with ν degrees of freedom is divided by (ν + 2)/ν, the factor by which it is too large on
    average; with a single one, too many degrees of freedom would be found where the parts differ in noise.
    """
    if not estimate.parts:
        return None
    whole = estimate.covariance
    trace = float(np.trace(whole))
    if math.sqrt(trace / len(whole)) <= ROUNDING * scale:
        return None
    squared_trace, squares, spread = trace**2, float(np.sum(whole**2)), 0.0
    for part in estimate.parts:
        excess = 2 / (part.df + 2) if len(whole) > 1 else 0.0
        own = float(np.sum(part.covariance**2))
        squared_trace -= excess * float(np.trace(part.covariance)) ** 2
        squares -= excess * own
        spread += (1 - excess) * own / part.df
    df = min(float(len(whole)), max(1.0, squared_trace / squares))
    df_noise = min(squared_trace / spread, df * sum(part.df for part in estimate.parts))
    f = float(np.sum(estimate.values**2)) / trace
    return FTest(f, df, df_noise, float(scipy.special.fdtrc(df, df_noise, f)))


def t_degrees(estimate: Estimate) -> float:
    """Return the degrees of freedom of the noise of a single contrast (Satterthwaite 1946)."""
    variances = [float(part.covariance[0, 0]) for part in estimate.parts]
    spread = sum(variance**2 / part.df for variance, part in zip(variances, estimate.parts, strict=True))
    return sum(variances) ** 2 / spread if spread else math.inf


Cells = Mapping[tuple[Any, ...], Mapping[tuple[Any, ...], ReplicateGroup]]  # by the values of two sets of keys


def full_rows(cells: Mapping[Any, Mapping[Any, ReplicateGroup]]) -> tuple[list[Any], list[Any]]:
    """Return the columns and the rows of the largest complete block of cells; empty if no row has two columns.

    The candidates are the sets of columns that some row has. Among equally large blocks, more columns are preferred.
    """
    present = {row: frozenset(columns) for row, columns in cells.items()}
    best: tuple[int, int, frozenset[Any], list[Any]] = (0, 0, frozenset(), [])
    for columns in dict.fromkeys(present.values()):
        if len(columns) > 1:
            rows = [row for row, have in present.items() if columns <= have]
            best = max(best, (len(columns) * len(rows), len(columns), columns, rows), key=lambda one: one[:2])
    order = dict.fromkeys(column for columns in cells.values() for column in columns)
    return [column for column in order if column in best[2]], best[3]


def averages(count: int) -> np.ndarray:
    """Return orthonormal contrasts (count − 1, count): what is left of `count` numbers without their mean (Helmert)."""
    rows = np.tril(np.ones((count - 1, count)))
    rows[np.arange(count - 1), np.arange(1, count)] = -np.arange(1, count)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def estimate_contrasts(rows: Sequence[Sequence[ReplicateGroup]], contrasts: np.ndarray) -> Estimate | str:
    """Return contrasts (q, n) of n groups, averaged over rows of n groups each; a text if they cannot be estimated.

    Where the contrasts cancel what equal seeds share (groups with equal `start`), only seeds that all groups of a row
    have are used, and the noise is that of the contrast within these seeds. Otherwise it is the noise of the means over
    all rows that share a start. If no row has two seeds, the rows take the place of the seeds.
    """
    starts = [_places(group.start for group in row) for row in rows]
    cancels = all(np.allclose(contrasts[:, places].sum(axis=1), 0) for own in starts for places in own.values())
    if cancels:
        return _within_rows(rows, starts, contrasts)
    return _over_rows(rows, contrasts)


def _within_rows(
    rows: Sequence[Sequence[ReplicateGroup]], starts: Sequence[Mapping[Hashable, list[int]]], contrasts: np.ndarray
) -> Estimate | str:
    tables = [
        [(places, _table([row[place] for place in places])) for places in own.values()]
        for row, own in zip(rows, starts, strict=True)
    ]
    tables = [own for own in tables if all(table.shape[1] for _, table in own)]
    if not tables:
        return NO_SHARED_SEEDS
    usable = [own for own in tables if all(table.shape[1] >= FEWEST for _, table in own)]
    if usable:
        values = np.mean([sum(contrasts[:, places] @ table.mean(axis=1) for places, table in own) for own in usable], 0)
        parts = [
            _part(contrasts[:, places] @ table, table.shape[1] * len(usable) ** 2)
            for own in usable
            for places, table in own
        ]
        return Estimate(values, parts)
    each = np.array([sum(contrasts[:, places] @ table.mean(axis=1) for places, table in own) for own in tables])
    if len(each) < FEWEST:
        return Estimate(each[0], [], why=TOO_FEW_SEEDS)
    return Estimate(each.mean(axis=0), [_part(each.T, len(each))], seeds=False)


def _over_rows(rows: Sequence[Sequence[ReplicateGroup]], contrasts: np.ndarray) -> Estimate | str:
    groups = [group for row in rows for group in row]
    weights = np.tile(contrasts, len(rows)) / len(rows)
    parts, values = [], np.zeros(len(contrasts))
    for places in _places(group.start for group in groups).values():
        table = _table([groups[place] for place in places])
        if not table.shape[1]:
            return NO_SHARED_SEEDS
        own = weights[:, places] @ table
        values = values + own.mean(axis=1)
        parts.append(_part(own, table.shape[1]) if table.shape[1] >= FEWEST else None)
    if any(part is None for part in parts):
        return Estimate(values, [], why=NO_SEPARATE_NOISE)
    return Estimate(values, [part for part in parts if part is not None])


def _places(starts: Iterable[Hashable]) -> dict[Hashable, list[int]]:
    found: dict[Hashable, list[int]] = {}
    for place, start in enumerate(starts):
        found.setdefault(start, []).append(place)
    return found


def _table(groups: Sequence[ReplicateGroup]) -> np.ndarray:
    """Return the values (groups, seeds) of the seeds that all groups have."""
    shared = [seed for seed in groups[0].values if all(seed in group.values for group in groups[1:])]
    return np.array([[group.values[seed] for seed in shared] for group in groups], dtype=float)


def _part(samples: np.ndarray, count: int) -> Part:
    """Return the covariance of the mean of samples (q, n), divided by `count` instead of n."""
    return Part(np.atleast_2d(np.cov(samples)) / count, samples.shape[1] - 1)


def cells_of(groups: Sequence[ReplicateGroup], row: Sequence[str], column: Sequence[str]) -> Cells:
    """Return the groups in a table, by their values of the keys in `row` and of those in `column`."""
    found: dict[tuple[Any, ...], dict[tuple[Any, ...], ReplicateGroup]] = {}
    for group in groups:
        place, across = (tuple(group.settings[key] for key in keys) for keys in (row, column))
        found.setdefault(place, {})[across] = group
    return found
