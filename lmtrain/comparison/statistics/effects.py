"""Estimates the effect of each setting when several settings differ at once."""

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lmtrain.comparison.statistics.factorial import (
    Cells,
    Estimate,
    FTest,
    averages,
    cells_of,
    estimate_contrasts,
    f_test,
    full_rows,
)
from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.response import Optimum, Trend, numbers_of, optimum, trend
from lmtrain.comparison.statistics.significance import ALPHA, Correlation, holm_correction, spearman
from lmtrain.errors import PRUNED
from lmtrain.files.numbers import is_number

MAX_CELLS = 400  # of one test; with more, the runs are not a designed experiment


@dataclass(frozen=True)
class Effect:
    """The effect of one setting while the others are equal.

    Attributes:
        key: The setting's config key.
        means: The mean for each value of the setting, sorted by value, over the same values of the other settings.
        size: The largest of these means minus the smallest; NaN if the effect cannot be determined.
        test: The test that all these means are equal; None without noise to compare with.
        p: The test's p, corrected for the number of settings; None if it is withheld.
        alike: The settings that change exactly where this one does, as warmup may with the number of steps. The effect
            is the common effect of all of them.
        together: If the effect cannot be determined: the settings that each determine this one's value.
        rank: If the effect cannot be determined and the setting is a number: the rank correlation of the setting and
            the groups' means, with the other settings not held equal, and p corrected for the number of settings.
        left_out: The values that were not tried together with the same values of the other settings.
        places: The number of combinations of the other settings over which the means are, and how many there are at
            which the setting was varied.
        trend: The trend over the values, if they are at least three numbers.
        optimum: The best value by a parabola, if they are at least four numbers.
        remark: In words, why p is withheld.
    """

    key: str
    means: Mapping[Any, float]
    size: float
    test: FTest | None = None
    p: float | None = None
    alike: tuple[str, ...] = ()
    together: tuple[str, ...] = ()
    rank: Correlation | None = None
    left_out: tuple[Any, ...] = ()
    places: tuple[int, int] = (0, 0)
    trend: Trend | None = None
    optimum: Optimum | None = None
    remark: str = ""


@dataclass(frozen=True)
class Interaction:
    """A test whether the effect of one setting depends on another; `p` is corrected for all tested pairs."""

    keys: tuple[str, str]
    test: FTest
    p: float


@dataclass(frozen=True)
class SettingEffects:
    """The effects of all settings, largest first, and the interactions that could be tested.

    Attributes:
        effects: One for each setting.
        interactions: One for each pair of settings that were tried in all combinations.
        confidence: The confidence with which all intervals of the effects hold together.
        by_seeds: True if the noise is that between seeds. Otherwise no setting has several seeds, and the noise is the
            variation of an effect between the values of the other settings, which includes interactions.
    """

    effects: Sequence[Effect] = ()
    interactions: Sequence[Interaction] = ()
    confidence: float = 1 - ALPHA
    by_seeds: bool = True


def effects(groups: Sequence[ReplicateGroup], *, sign: int = 1) -> SettingEffects:
    """Return the effect of each setting in which the groups differ.

    A setting's effect is the difference of its means over those values of the other settings with which all of its
    values were tried, each with the same weight. This holds whether or not the settings interact. Groups in which runs
    diverged or were pruned are left out, because their other runs look better than the setting is.

    Args:
        groups: The groups, including those without any value.
        sign: 1 if lower values are better, −1 if higher values are.
    """
    settings = [group.settings for group in groups]
    differing = [key for key in (settings[0] if settings else ()) if len({own[key] for own in settings}) > 1]
    keys, alike = _merge_equal_divisions(settings, differing)
    usable = [group for group in groups if group.values and not group.diverged and not _has_pruned(group)]
    scale = max((abs(value) for group in usable for value in group.sample), default=0.0)
    means = {key: _level_means(usable, key, keys) for key in keys}
    determined = sum(isinstance(found, tuple) for found in means.values())
    alpha = ALPHA / max(1, determined)
    found = []
    for key, estimated in means.items():
        if isinstance(estimated, str):
            found.append(_undetermined_effect(key, keys, settings, usable, estimated))
            continue
        levels, left_out, places, estimate = estimated
        effect = _effect_of_levels(key, levels, estimate, sign=sign, scale=scale, alpha=alpha)
        found.append(replace(effect, alike=alike[key], left_out=left_out, places=places))
    interactions = _interactions(usable, [effect.key for effect in found if effect.means], keys, scale)
    estimates = [estimated[3] for estimated in means.values() if isinstance(estimated, tuple)]
    corrected = _withhold(_correct(found), interactions)
    corrected.sort(key=lambda effect: -effect.size if math.isfinite(effect.size) else math.inf)
    return SettingEffects(corrected, interactions, 1 - ALPHA, all(estimate.seeds for estimate in estimates))


def _level_means(
    groups: Sequence[ReplicateGroup], key: str, keys: Sequence[str]
) -> tuple[list[Any], tuple[Any, ...], tuple[int, int], Estimate] | str:
    """Return the levels of a setting, those left out, the places (see `Effect`) and the estimate of the levels' means.

    Return a text if there is no estimate.

    The means are shifted by a common constant, which is unknown where seeds are compared with themselves; their
    differences are what is estimated.
    """
    others = [other for other in keys if other != key]
    cells = cells_of(groups, others, [key])
    columns, rows = full_rows(cells)
    levels = sorted((level for (level,) in columns), key=_order)
    if not levels:
        return "no runs differ in this setting alone"
    if len(levels) * len(rows) > MAX_CELLS:
        return f"more than {MAX_CELLS} settings"
    table = [[cells[row][(level,)] for level in levels] for row in rows]
    center = np.eye(len(levels)) - 1 / len(levels)
    estimate = estimate_contrasts(table, center)
    if isinstance(estimate, str):
        return estimate
    middle = float(np.mean([group.mean for row in table for group in row]))
    shifted = Estimate(estimate.values + middle, estimate.parts, estimate.seeds, estimate.why)
    tried = sorted({group.settings[key] for group in groups}, key=_order)
    varied = sum(len(own) > 1 for own in cells.values())
    return levels, tuple(level for level in tried if level not in levels), (len(rows), varied), shifted


def _effect_of_levels(
    key: str, levels: Sequence[Any], means: Estimate, *, sign: int, scale: float, alpha: float
) -> Effect:
    test = f_test(means.of(averages(len(levels))), scale)
    numbers = numbers_of(levels)
    known = numbers is not None and test is not None
    return Effect(
        key,
        dict(zip(levels, map(float, means.values), strict=True)),
        float(np.ptp(means.values)),
        test,
        None if test is None else test.p,
        trend=trend(numbers, means, alpha) if known and numbers else None,
        optimum=optimum(numbers, means, sign, scale, alpha) if known and numbers else None,
        remark=means.why,
    )


def _undetermined_effect(
    key: str,
    keys: Sequence[str],
    settings: Sequence[Mapping[str, Any]],
    groups: Sequence[ReplicateGroup],
    why: str,
) -> Effect:
    """Return the effect of a setting whose values cannot be compared with the other settings equal.

    This is the usual case in a random search.
    """
    numbers = [(float(group.settings[key]), group.mean) for group in groups if is_number(group.settings[key])]
    rank = spearman(*zip(*numbers, strict=True)) if numbers else None
    determining = tuple(other for other in keys if other != key and _determines(settings, other, key))
    return Effect(key, {}, math.nan, together=determining, rank=rank, remark=why)


def _interactions(
    groups: Sequence[ReplicateGroup], keys: Sequence[str], all_keys: Sequence[str], scale: float
) -> list[Interaction]:
    """Test each pair of settings that were tried in all combinations, while the others are equal."""
    found: list[tuple[tuple[str, str], FTest]] = []
    for first, second in itertools.combinations(keys, 2):
        others = [key for key in all_keys if key not in (first, second)]
        test = _test_pair(cells_of(groups, others, [first, second]), scale)
        if test is not None:
            found.append(((first, second), test))
    ps = holm_correction([test.p for _, test in found])
    return [Interaction(pair, test, float(p)) for (pair, test), p in zip(found, ps, strict=True)]


def _test_pair(by_rest: Cells, scale: float) -> FTest | None:
    best: tuple[int, list[Any], list[Any]] = (0, [], [])
    for own in by_rest.values():
        table: dict[Hashable, dict[Hashable, ReplicateGroup]] = {}
        for (a, b), group in own.items():
            table.setdefault(a, {})[b] = group
        columns, rows = full_rows(table)
        if len(rows) > 1:
            best = max(best, (len(rows) * len(columns), list(rows), columns), key=lambda one: one[0])
    size, a_levels, b_levels = best
    pairs = list(itertools.product(a_levels, b_levels))
    rows_of_groups = [[own[pair] for pair in pairs] for own in by_rest.values() if all(pair in own for pair in pairs)]
    if not size or size * len(rows_of_groups) > MAX_CELLS:
        return None
    contrasts = np.kron(averages(len(a_levels)), averages(len(b_levels)))
    estimate = estimate_contrasts(rows_of_groups, contrasts)
    return None if isinstance(estimate, str) else f_test(estimate, scale)


def _correct(found: Sequence[Effect]) -> list[Effect]:
    """Correct p for the number of settings (Holm)."""
    ps = {number: effect.p for number, effect in enumerate(found) if effect.p is not None}
    ps |= {number: effect.rank.p for number, effect in enumerate(found) if effect.rank is not None}
    corrected = dict(zip(ps, holm_correction(list(ps.values())).tolist(), strict=True))
    result = []
    for number, effect in enumerate(found):
        if effect.p is not None:
            result.append(replace(effect, p=corrected[number]))
        elif effect.rank is not None:
            result.append(replace(effect, rank=replace(effect.rank, p=corrected[number])))
        else:
            result.append(effect)
    return result


def _withhold(found: Sequence[Effect], interactions: Sequence[Interaction]) -> list[Effect]:
    """Take p, trend and optimum away from the settings whose effect depends on another one."""
    depends: dict[str, list[str]] = {}
    for interaction in interactions:
        if interaction.p < ALPHA:
            for key, other in itertools.permutations(interaction.keys):
                depends.setdefault(key, []).append(other)
    return [
        replace(effect, p=None, trend=None, optimum=None, remark=f"depends on {', '.join(depends[effect.key])}")
        if effect.key in depends
        else effect
        for effect in found
    ]


def _merge_equal_divisions(
    settings: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Return the keys without those that divide the groups as an earlier key does, and the dropped keys by that key.

    All keys with a different value in each group, as in a random search, divide the groups in the same way. Of those,
    only numbers that rise or fall together change together.
    """
    firsts: dict[tuple[Any, ...], list[str]] = {}
    for key in keys:
        values = [setting[key] for setting in settings]
        division: tuple[Any, ...] = tuple(map(values.index, values))
        if len(set(division)) == len(settings) > 2:
            division = _rank_order(values) if all(map(is_number, values)) else (key,)
        firsts.setdefault(division, []).append(key)
    return [first for first, *_ in firsts.values()], {first: tuple(others) for first, *others in firsts.values()}


def _rank_order(values: Sequence[float]) -> tuple[Any, ...]:
    """Return the places of distinct numbers in ascending order, or in descending order if the first is larger."""
    places = sorted(range(len(values)), key=lambda place: values[place])
    return ("order", *min(places, places[::-1]))


def _determines(settings: Sequence[Mapping[str, Any]], key: str, other: str) -> bool:
    """Return whether each value of `key` occurs with one value of `other` only, and some value more than once."""
    pairs = {(setting[key], setting[other]) for setting in settings}
    return len(pairs) == len({setting[key] for setting in settings}) < len(settings)


def _has_pruned(group: ReplicateGroup) -> bool:
    return PRUNED.status in group.missing.values()


def _order(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if is_number(value) else (1, 0.0, str(value))
