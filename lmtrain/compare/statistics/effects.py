"""Estimates the effect of each setting when several settings differ at once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from lmtrain.compare.statistics.significance import Correlation, SeedNoise, pooled_noise, spearman
from lmtrain.files.numbers import is_number

ROUNDING = 1e-12  # relative; any noise below it is rounding error
MAX_COLUMNS = 500  # of the design matrix; with more, the runs are not a designed experiment


@dataclass(frozen=True)
class Effect:
    """The effect of one setting while the others are equal.

    Attributes:
        key: The setting's config key.
        means: The mean for each value of the setting, sorted by value, adjusted to the average of the other settings.
        size: The largest of these means minus the smallest; NaN if the effect cannot be determined.
        f: The F statistic; None without noise to compare with.
        p: The p-value of F; None without F.
        alike: The settings that change exactly where this one does, as warmup may with the number of steps. The effect
            is the common effect of all of them.
        together: If the effect cannot be determined: the settings that each determine this one's value.
        rank: If the effect cannot be determined and the setting is a number: the rank correlation of the setting and
            the groups' means, with the other settings not held equal.
    """

    key: str
    means: Mapping[Any, float]
    size: float
    f: float | None
    p: float | None
    alike: tuple[str, ...] = ()
    together: tuple[str, ...] = ()
    rank: Correlation | None = None


def effects(
    settings: Sequence[Mapping[str, Any]], samples: Sequence[Sequence[float]], keys: Sequence[str]
) -> tuple[list[Effect], SeedNoise | None]:
    """Return each key's effect on the mean, largest first, and the noise that the effects are compared with.

    Group i has `settings[i]` and the values `samples[i]`, one per seed. The model is additive: mean = constant + one
    term for the value of each key. It is fitted to the groups' means by least squares, weighted by group size. A key's
    F is the rise of the residual sum of squares without its terms, divided by their number and by the noise variance
    (type II sums; for a balanced design, the textbook's analysis of variance with replicates). The noise is the
    variation within groups, so that interactions of settings do not count as noise. Without replicates, the noise is
    the model's residuals, which include interactions.
    """
    keys, alike = _merge_equal_divisions(settings, keys)
    levels = {key: list(dict.fromkeys(setting[key] for setting in settings)) for key in keys}
    if sum(map(len, levels.values())) > MAX_COLUMNS:
        return [_undetermined_effect(key, settings, samples) for key in keys], None
    weights = np.sqrt([len(values) for values in samples])
    y = np.array([np.mean(values) for values in samples]) * weights
    ones = np.ones((len(settings), 1))
    parts = {
        key: np.array([[float(setting[key] == level) for level in levels[key][1:]] for setting in settings])
        for key in keys
    }
    design = np.hstack([ones, *parts.values()]) * weights[:, None]
    squares, rank = _residual_squares(design, y)
    noise = pooled_noise(samples)
    if noise is None and len(y) > rank:
        noise = SeedNoise(math.sqrt(squares / (len(y) - rank)), len(y) - rank)
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    found, start = [], 1
    for key in keys:
        width = parts[key].shape[1]
        terms = np.concatenate([[0.0], coefficients[start : start + width]])
        share = np.average(parts[key], axis=0, weights=weights**2)
        overall = float(np.average([np.mean(values) for values in samples], weights=weights**2))
        adjusted = overall + terms - float(share @ terms[1:])
        others = np.delete(design, np.s_[start : start + width], axis=1)
        start += width
        without, rank_without = _residual_squares(others, y)
        df = rank - rank_without
        if df < width:  # some values of this key occur only together with values of other keys
            found.append(_undetermined_effect(key, settings, samples, together=_confounded(key, parts, weights)))
            continue
        means = dict(sorted(zip(levels[key], map(float, adjusted), strict=True), key=_by_value))
        f = p = None
        if noise is not None and noise.sd > ROUNDING * float(np.abs(y).max()):
            f = max(0.0, without - squares) / df / noise.sd**2
            p = float(special.fdtrc(df, noise.df, f))
        found.append(Effect(key, means, float(np.ptp(adjusted)), f, p, alike[key]))
    found.sort(key=lambda effect: -effect.size if math.isfinite(effect.size) else math.inf)
    return found, noise


def _merge_equal_divisions(
    settings: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Return the keys without those that divide the groups as an earlier key does, and the dropped keys by that key.

    A key with a different value in each group is always kept: all such keys divide the groups in the same way.
    """
    firsts: dict[tuple[Any, ...], list[str]] = {}
    for key in keys:
        values = [setting[key] for setting in settings]
        division: tuple[Any, ...] = tuple(map(values.index, values))
        alone = len(set(division)) == len(settings)
        firsts.setdefault((key,) if alone else division, []).append(key)
    return [first for first, *_ in firsts.values()], {first: tuple(others) for first, *others in firsts.values()}


def _undetermined_effect(
    key: str, settings: Sequence[Mapping[str, Any]], samples: Sequence[Sequence[float]], together: tuple[str, ...] = ()
) -> Effect:
    """Return the effect of a setting whose values cannot be compared with the other settings equal.

    This is the usual case in a random search.
    """
    numbers = [
        (float(setting[key]), float(np.mean(values)))
        for setting, values in zip(settings, samples, strict=True)
        if is_number(setting[key])
    ]
    rank = spearman(*zip(*numbers, strict=True)) if numbers else None
    return Effect(key, {}, math.nan, None, None, together=together, rank=rank)


def _residual_squares(design: np.ndarray, y: np.ndarray) -> tuple[float, int]:
    """Return the residual sum of squares of a fit to the columns, and the rank of the columns."""
    coefficients, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    return float(np.sum((y - design @ coefficients) ** 2)), int(rank)


def _confounded(key: str, parts: Mapping[str, np.ndarray], weights: np.ndarray) -> tuple[str, ...]:
    """Return the other keys that each determine this key's value alone; empty if only several together do."""
    ones = np.ones((len(weights), 1))
    alone = []
    for other, part in parts.items():
        base = np.hstack([ones, part])
        if (
            other != key
            and np.linalg.matrix_rank(np.hstack([base, parts[key]]))
            < np.linalg.matrix_rank(base) + (parts[key].shape[1])
        ):
            alone.append(other)
    return tuple(alone)


def _by_value(item: tuple[Any, float]) -> tuple[int, float, str]:
    value = item[0]
    return (0, float(value), "") if is_number(value) else (1, 0.0, str(value))
