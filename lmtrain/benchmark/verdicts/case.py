"""Defines what a simulation measures, what it must keep, and how the result is judged."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Values = Sequence[float] | np.ndarray

ERRORS = 3  # Monte Carlo errors by which a measured value may lie beyond its limit


@dataclass(frozen=True)
class Row:
    """A measured number.

    Attributes:
        what: What was measured, in words.
        value: The measured share, ratio or mean.
        error: Its Monte Carlo standard error; for a share with a limit, that of a true share equal to the limit.
        limit: The value that is promised; None if the number is only shown.
        at_most: True if the value must be at most the limit; False if at least.
    """

    what: str
    value: float
    error: float
    limit: float | None = None
    at_most: bool = True

    @property
    def excess(self) -> float:
        """Return by how many Monte Carlo errors the value is beyond its limit; negative within it."""
        if self.limit is None:
            return -math.inf
        if math.isnan(self.value):  # it could not be measured, which is no success
            return math.inf
        beyond = (self.value - self.limit) * (1 if self.at_most else -1)
        return beyond / self.error if self.error else math.copysign(math.inf, beyond) if beyond else 0.0


@dataclass(frozen=True)
class Case:
    """A simulation.

    Attributes:
        name: What is simulated, in words.
        measure: Simulates a number of tables with a random generator and returns the measured numbers.
        share: The share of the requested tables to simulate, smaller for cases that take long.
        typical: Whether the case is one of the few that `--quick` runs.
        holes: For each row that is known to break its promise, the reason, which the documentation names.
    """

    name: str
    measure: Callable[[int, np.random.Generator], Sequence[Row]]
    share: float = 1.0
    typical: bool = False
    holes: Mapping[str, str] = field(default_factory=dict)

    def judge(self, row: Row) -> str:
        """Return `ok`, `fault`, `hole` (a fault that is known and documented), or empty without a promise."""
        if row.limit is None:
            return ""
        if row.excess <= ERRORS:
            return "ok"
        return "hole" if row.what in self.holes else "fault"


def share_at_most(what: str, flags: Values, limit: float) -> Row:
    """Return the share of tables in which something happened that must be rare. NaN means: does not apply."""
    return _share(what, flags, limit, at_most=True)


def share_at_least(what: str, flags: Values, limit: float) -> Row:
    """Return the share of tables in which something held that must hold often. NaN means: does not apply."""
    return _share(what, flags, limit, at_most=False)


def shown_share(what: str, flags: Values) -> Row:
    """Return a share without a limit."""
    value, count = _mean(flags)
    return Row(what, value, math.sqrt(value * (1 - value) / count) if count else math.nan)


def shown_mean(what: str, values: Values) -> Row:
    """Return a mean without a limit."""
    value, count = _mean(values)
    finite = np.asarray(values, dtype=float)[np.isfinite(values)]
    return Row(what, value, float(np.std(finite, ddof=1)) / math.sqrt(count) if count > 1 else math.nan)


def ratio_at_least(what: str, above: Values, below: Values, limit: float | None) -> Row:
    """Return the ratio of two means over the same tables, with its error by the delta method."""
    top, bottom = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    if not bottom.any():
        return Row(what, math.inf if top.any() else math.nan, 0.0, limit, at_most=False)
    ratio = float(top.mean() / bottom.mean())
    error = float(np.std(top - ratio * bottom, ddof=1) / bottom.mean()) / math.sqrt(len(top))
    return Row(what, ratio, error, limit, at_most=False)


def _share(what: str, flags: Values, limit: float, *, at_most: bool) -> Row:
    value, count = _mean(flags)
    return Row(what, value, math.sqrt(limit * (1 - limit) / count) if count else math.nan, limit, at_most)


def _mean(values: Values) -> tuple[float, int]:
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    return (float(finite.mean()) if len(finite) else math.nan), len(finite)
