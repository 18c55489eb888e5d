"""Standard errors and intervals of a loss per token or per byte, with documents as the independent units."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy  # loads scipy.special when a function of it is first called, and never scipy.stats, which takes seconds

LEVEL = 0.95  # of the intervals


@dataclass(frozen=True)
class Ratio:
    """A sum of values over documents divided by a sum of sizes. What needs two documents is NaN for one.

    Attributes:
        value: The ratio.
        standard_error: Its standard error.
        documents: The number of documents.
        low: The lower end of its 95% interval.
        high: The upper end.
        p: The two-sided p-value of the hypothesis that the ratio is 0.
    """

    value: float
    standard_error: float
    documents: int
    low: float
    high: float
    p: float


def ratio(values: npt.ArrayLike, sizes: npt.ArrayLike) -> Ratio:
    """Return Σ values / Σ sizes with the standard error of the ratio estimator.

    With R = Σ v / Σ s over D documents, the residuals are e = v - R s, and the standard error is
    sqrt(D / (D - 1) · Σ e²) / Σ s (Cochran, "Sampling Techniques", 1977, equation 6.13, without the correction for a
    finite population). It is also the cluster-robust standard error of a mean over tokens whose clusters are documents.
    The interval is that of Student's t with D - 1 degrees of freedom.
    """
    v, s = np.asarray(values, np.float64), np.asarray(sizes, np.float64)
    count, total = len(v), float(s.sum())
    value = float(v.sum()) / total
    if count < 2:
        return Ratio(value, math.nan, count, math.nan, math.nan, math.nan)
    error = math.sqrt(count / (count - 1) * float(np.square(v - value * s).sum())) / total
    half = float(scipy.special.stdtrit(count - 1, (1 + LEVEL) / 2)) * error
    if error == 0:
        return Ratio(value, 0.0, count, value, value, 1.0 if value == 0 else 0.0)
    p = float(2 * scipy.special.stdtr(count - 1, -abs(value / error)))
    return Ratio(value, error, count, value - half, value + half, p)
