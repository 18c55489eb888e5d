"""Tests the differences of settings, corrected for how many there are: p-values and intervals that agree."""

import math
from dataclasses import dataclass

import numpy as np

from lmtrain.comparison.statistics.noise.largest_difference import (
    dunnett_quantile,
    dunnett_tail,
    range_quantile,
    range_tail,
)
from lmtrain.comparison.statistics.noise.model import NoiseModel
from lmtrain.comparison.statistics.significance import ALPHA, MeanDifference, critical_t, two_sided_p

FEWEST_OWN = 3  # seeds of both settings from which their own noise must confirm a difference
DOUBTFUL = 1.5  # factor on the own error of a pair with two seeds, whose median is that much too small
UNCORRECTED = 3  # settings up to which the test by a pair's own noise is not corrected for their number


@dataclass(frozen=True)
class _Error:
    """The errors of a difference: `common`, from the model but never below `own`, which is that of the pair alone.

    `own_df` is 0 if the pair has too few seeds for a test by its own noise.
    """

    common: float
    own: float
    own_df: float


class Differences:
    """The differences of one family: all pairs of settings (Tukey-Kramer), or all with one baseline (Dunnett).

    A difference passes two tests. The first has the noise of all settings and is corrected for the size of the family.
    The second has the pair's own noise, so that one setting that is noisier than the others gets no false verdicts; it
    is not corrected for up to three settings, and for k settings by a factor of k/3. With two seeds, whose own noise
    is hardly known, it only widens the error of the first. Simulations chose these limits.
    """

    def __init__(self, model: NoiseModel, *, baseline: int | None = None) -> None:
        self.model = model
        self.k = len(model.means)
        self.baseline = baseline
        self._own_correction = max(1.0, self.k / UNCORRECTED)
        self._loads = () if baseline is None else _loads(model.unit, baseline)

    @property
    def test(self) -> str:
        """Return the name of the test."""
        if self.k == 2:
            return "paired t-test" if self.model.paired else "t-test"
        return "Tukey's test" if self.baseline is None else "Dunnett's test"

    def between(self, a: int, b: int, alpha: float = ALPHA) -> tuple[MeanDifference, float]:
        """Return the difference of two settings, given by their indices, and its corrected p-value.

        The corrected p-value is below `alpha` exactly where the interval excludes 0.
        """
        value, error = self.value(a, b), self._error(a, b)
        difference = MeanDifference(
            value,
            half_width=self._half_width(error, alpha),
            p=self._p(abs(value), error, alone=True),
            test=self.test,
            standard_error=error.common,
            df=self.model.df,
        )
        return difference, max(difference.p, self._p(abs(value), error))

    def value(self, a: int, b: int) -> float:
        """Return the first mean minus the second."""
        return float(self.model.means[a] - self.model.means[b])

    def p_beyond(self, a: int, b: int, limit: float) -> float:
        """Return the corrected one-sided p-value against a true difference of `limit` or more."""
        distance = limit - self.value(a, b)
        half = self._p(abs(distance), self._error(a, b)) / 2
        return half if distance > 0 else 1 - half

    def _error(self, a: int, b: int) -> _Error:
        model, unit = self.model, self.model.unit
        common = model.sd * math.sqrt(max(0.0, float(unit[a, a] + unit[b, b] - 2 * unit[a, b])))
        counts = model.counts[[a, b]]
        fewest = int(counts.min())
        both = model.present[a] & model.present[b]
        shared = int(both.sum())
        if model.paired and not shared:  # what equal seeds have in common does not cancel in this difference
            common = max(common, model.separate_sd * math.sqrt(float(np.sum(1 / counts))))
        # The errors to expect from the seeds that both have, and from all seeds, in units of the model's variance.
        of_shared = 2 / shared if shared else math.inf
        of_all = float((1 + model.ratio) * np.sum(1 / counts) - 2 * model.ratio * shared / np.prod(counts))
        if model.paired and shared >= FEWEST_OWN and of_shared < of_all:
            own = float(np.std((model.residuals[a] - model.residuals[b])[both], ddof=1)) / math.sqrt(shared)
            return _Error(max(common, own), own, shared - 1.0)
        factors = np.sqrt(counts / np.maximum(counts - 1, 1)) / counts * (counts > 1)
        parts = model.residuals[[a, b]] * factors[:, None]  # what each value adds to the error
        if model.paired:
            own, own_df = math.sqrt(float(np.sum((parts[0] - parts[1]) ** 2))), fewest - 1.0
        else:  # Welch's
            squares = np.sum(parts**2, axis=1)
            own = math.sqrt(float(squares.sum()))
            terms = float(np.sum(squares**2 / np.maximum(counts - 1, 1)))
            own_df = float(squares.sum()) ** 2 / terms if terms else fewest - 1.0
        if fewest >= FEWEST_OWN:
            return _Error(max(common, own), own, own_df)
        return _Error(max(common, own * (DOUBTFUL if fewest > 1 and self.k > 2 else 1)), own, 0.0)

    def _p(self, distance: float, error: _Error, *, alone: bool = False) -> float:
        if error.common == 0:
            return math.nan
        t, df = distance / error.common, self.model.df
        if alone or self.k == 2:
            p = two_sided_p(t, df)
        elif self.baseline is None:
            p = range_tail(t * math.sqrt(2), self.k, df)
        else:
            p = dunnett_tail(t, self._loads, df)
        if error.own_df and error.own:
            p = max(p, two_sided_p(distance / error.own, error.own_df) * (1 if alone else self._own_correction))
        return min(1.0, p)

    def _half_width(self, error: _Error, alpha: float) -> float:
        df = self.model.df
        if self.k == 2:
            limit = critical_t(df, alpha)
        elif self.baseline is None:
            limit = range_quantile(alpha, self.k, df) / math.sqrt(2)
        else:
            limit = dunnett_quantile(alpha, self._loads, df)
        width = limit * error.common
        if error.own_df:
            width = max(width, critical_t(error.own_df, alpha / self._own_correction) * error.own)
        return width


def _loads(unit: np.ndarray, baseline: int) -> tuple[float, ...]:
    """Return Dunnett's λ of each other setting: λᵢ² is the share of the baseline in the variance of a difference."""
    own = np.diag(unit)
    shares = (own[baseline] - unit[baseline]) / np.where(
        (whole := own + own[baseline] - 2 * unit[baseline]) > 0, whole, 1
    )
    return tuple(np.round(np.sqrt(np.clip(np.delete(shares, baseline), 0, 0.998)), 3).tolist())
