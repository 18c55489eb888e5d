"""The effect of each setting, when several differ at once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from lmtrain.compare.statistics.significance import Correlation, SeedNoise, pooled_noise, spearman
from lmtrain.files.numbers import is_number

ROUNDING = 1e-12  # relative; a noise below it is that of the arithmetic
MAX_COLUMNS = 500  # of the design; more settings than that are no experiment to analyse so


@dataclass(frozen=True)
class Effect:
    """The effect of one setting, with the others equal.

    `means` are by value of the setting, in the order of the values, adjusted to the average of the others; `size` is
    the largest less the smallest. `alike` are settings that change where this one does, as the warmup does with the
    number of steps: the effect is that of all of them. `p` is None where nothing can be told, and `together` names the
    settings that alone tell this one's value then; for a setting that is a number `rank` says what there is to say:
    whether the groups' means rise or fall with it, the other settings not held equal.
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
    """Return each key's effect on the mean, largest first, and the noise that they are compared with.

    Group i has the values `samples[i]`, a seed each, under `settings[i]`. The model is additive: mean = constant + one
    term for the value of each key, fitted to the groups' means by least squares with the groups' sizes as weights. A
    key's F is the rise of the sum of squares when its terms are left out, over their number, against the noise (type II
    sums; for a balanced design, those of the textbook's analysis of variance with replicates). The noise is that
    within groups: an interaction of settings is not taken for noise. Without replicates, the model's residuals stand in
    for it, interactions and all.
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
        if df < width:  # some of its values come only together with those of others
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
    """Return the keys without those that divide the groups as an earlier key does, and the latter by that key.

    Not where a key has another value in each group: as all of them do then, that would make one setting of all.
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
    """Return the effect of a setting that no two groups share while the others are equal, as in a random search."""
    numbers = [
        (float(setting[key]), float(np.mean(values)))
        for setting, values in zip(settings, samples, strict=True)
        if is_number(setting[key])
    ]
    rank = spearman(*zip(*numbers, strict=True)) if numbers else None
    return Effect(key, {}, math.nan, None, None, together=together, rank=rank)


def _residual_squares(design: np.ndarray, y: np.ndarray) -> tuple[float, int]:
    """Return the sum of squares that the columns leave unexplained, and the rank of the columns."""
    coefficients, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    return float(np.sum((y - design @ coefficients) ** 2)), int(rank)


def _confounded(key: str, parts: Mapping[str, np.ndarray], weights: np.ndarray) -> tuple[str, ...]:
    """Return the other keys that determine this one's value by themselves; none if it takes several of them."""
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
