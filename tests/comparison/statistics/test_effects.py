"""The effects of settings agree with the textbook, and claim nothing that noise or an interaction has made."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lmtrain.comparison.statistics.effects import SettingEffects, effects
from lmtrain.comparison.statistics.group import ReplicateGroup

Cell = Mapping[str, Any]


def grid(**levels: Sequence[Any]) -> list[Cell]:
    return [dict(zip(levels, values, strict=True)) for values in itertools.product(*levels.values())]


def group(cell: Cell, values: Sequence[float], start: Any = None, **others: Any) -> ReplicateGroup:
    return ReplicateGroup(str(cell), cell, dict(enumerate(values)), start, **others)


def by_key(found: SettingEffects) -> dict[str, Any]:
    return {effect.key: effect for effect in found.effects}


def test_two_values_with_shared_seeds_are_a_paired_t_test() -> None:
    a, b = [3.0, 3.1, 3.3, 3.2], [3.2, 3.25, 3.6, 3.3]
    (effect,) = effects([group({"lr": 1}, a), group({"lr": 2}, b)]).effects
    theirs = stats.ttest_rel(a, b)
    assert effect.test is not None
    assert (effect.test.f, effect.p) == (pytest.approx(theirs.statistic**2), pytest.approx(theirs.pvalue))


def test_two_values_without_a_shared_start_are_welchs_t_test() -> None:
    a, b = [3.0, 3.1, 3.3, 3.2], [3.2, 3.25, 3.6]
    (effect,) = effects([group({"lr": 1}, a, start=1), group({"lr": 2}, b, start=2)]).effects
    theirs = stats.ttest_ind(a, b, equal_var=False)
    assert effect.test is not None
    assert (effect.test.f, effect.p) == (pytest.approx(theirs.statistic**2), pytest.approx(theirs.pvalue))
    assert effect.test.df_noise == pytest.approx(theirs.df)


def test_many_values_are_an_analysis_of_variance_with_blocks_and_the_correction_of_greenhouse_and_geisser() -> None:
    y = np.random.default_rng(1).standard_normal((4, 6)) * np.array([[1], [2], [1], [3]])  # values, seeds
    (effect,) = effects([group({"lr": 2**i}, y[i]) for i in range(4)]).effects
    rest = y - y.mean(axis=0) - y.mean(axis=1, keepdims=True) + y.mean()
    f = (6 * np.var(y.mean(axis=1), ddof=1)) / (np.sum(rest**2) / 15)
    centred = np.cov(y) - np.cov(y).mean(axis=0) - np.cov(y).mean(axis=1, keepdims=True) + np.cov(y).mean()
    # `f_test` divides the sum of squares and the square of the trace by the same factor: epsilon is unchanged.
    epsilon = np.trace(centred) ** 2 / (3 * np.sum(centred**2))
    assert effect.test is not None
    assert effect.test.f == pytest.approx(f)
    assert (effect.test.df, effect.test.df_noise) == (pytest.approx(3 * epsilon), pytest.approx(15 * epsilon))
    assert effect.p == pytest.approx(stats.f.sf(f, 3 * epsilon, 15 * epsilon))


def test_one_seed_each_is_the_analysis_of_variance_against_what_the_other_setting_changes() -> None:
    y = np.random.default_rng(2).standard_normal((2, 5))
    found = by_key(effects([group({"lr": i, "decay": j}, [y[i, j]]) for i in range(2) for j in range(5)]))
    theirs = stats.ttest_rel(y[0], y[1])
    assert found["lr"].test.f == pytest.approx(theirs.statistic**2)
    assert found["lr"].test.p == pytest.approx(theirs.pvalue)


def test_one_seed_says_nothing_about_a_setting_that_changes_what_the_seed_gives() -> None:
    cells = grid(**{"model.n_layer": [2, 4], "lr": [1, 2, 4]})
    groups = [group(cell, [float(place**2)], start=cell["model.n_layer"]) for place, cell in enumerate(cells)]
    found = by_key(effects(groups))
    assert found["model.n_layer"].p is None
    assert "cannot be told from its effect" in found["model.n_layer"].remark
    assert found["lr"].p is not None


def test_in_a_split_plot_the_setting_of_the_model_is_tested_against_the_noise_of_whole_seeds() -> None:
    generator = np.random.default_rng(3)
    y = generator.standard_normal((2, 3, 1)) + 0.1 * generator.standard_normal((2, 3, 4))  # models, seeds, rates
    groups = [group({"model.n_layer": m, "lr": 2**r}, y[m, :, r], start=m) for m in range(2) for r in range(4)]
    found = by_key(effects(groups))
    theirs = stats.ttest_ind(y[0].mean(axis=1), y[1].mean(axis=1), equal_var=False)
    assert found["model.n_layer"].test.f == pytest.approx(theirs.statistic**2)
    assert found["model.n_layer"].test.p == pytest.approx(theirs.pvalue)
    rest = y - y.mean(axis=2, keepdims=True) - y.mean(axis=1, keepdims=True) + y.mean(axis=(1, 2), keepdims=True)
    error = np.sum(rest**2) / (2 * 3 * 2)  # the noise of the rates within a seed
    assert found["lr"].test.f == pytest.approx(6 * np.var(y.mean(axis=(0, 1)), ddof=1) / error)


def test_means_do_not_depend_on_how_many_runs_each_setting_has() -> None:
    cells = grid(lr=[1, 2], batch=[8, 16])
    samples = [[1.0] * 9, [3.0], [2.0], [4.0]]  # lr adds 1 and batch 2; nine of twelve runs have the first setting
    found = by_key(effects([group(cell, values) for cell, values in zip(cells, samples, strict=True)]))
    assert found["lr"].means[2] - found["lr"].means[1] == pytest.approx(1)
    assert found["batch"].means[16] - found["batch"].means[8] == pytest.approx(2)


def test_a_value_that_was_not_tried_with_the_others_is_left_out() -> None:
    cells = [*grid(lr=[1, 2, 4], batch=[8, 16]), {"lr": 8, "batch": 8}]
    found = by_key(effects([group(cell, [cell["lr"], cell["lr"] + 0.1]) for cell in cells]))
    assert list(found["lr"].means) == [1, 2, 4]
    assert found["lr"].left_out == (8,)
    assert found["lr"].places == (2, 2)
    assert list(found["batch"].means) == [8, 16]


def test_one_setting_at_a_time_around_a_default_has_effects() -> None:
    cells = [{"lr": 1, "decay": 0}, {"lr": 2, "decay": 0}, {"lr": 4, "decay": 0}, {"lr": 1, "decay": 1}]
    values = [[3.0, 3.1, 2.9], [2.0, 2.2, 1.9], [1.0, 1.1, 1.0], [3.1, 3.1, 3.0]]
    found = effects([group(cell, own) for cell, own in zip(cells, values, strict=True)])
    assert by_key(found)["lr"].p < 0.01
    assert by_key(found)["decay"].p > 0.05
    assert not found.interactions


def test_settings_that_always_change_together_are_one_effect() -> None:
    groups = [
        group({"lr": i, "batch": 8 * i, "decay": j}, [3.0 + 0.1 * i + 0.01 * k**j for k in range(3)])
        for i in (1, 2)
        for j in (1, 2)
    ]
    found = by_key(effects(groups))
    assert found.keys() == {"lr", "decay"}
    assert found["lr"].alike == ("batch",)
    assert found["lr"].size == pytest.approx(0.1)


def test_numbers_that_differ_in_every_run_change_together_only_if_they_rise_or_fall_together() -> None:
    paired = [group({"lr": lr, "warmup": 50 - lr}, [float(lr)]) for lr in (1, 2, 4)]
    assert by_key(effects(paired))["lr"].alike == ("warmup",)
    drawn = [group({"lr": lr, "decay": decay}, [float(lr)]) for lr, decay in ((1, 3), (2, 1), (4, 2))]
    assert by_key(effects(drawn)).keys() == {"lr", "decay"}


def test_settings_change_together_only_if_they_do_in_runs_that_diverged_too() -> None:
    cells = grid(lr=[1, 2], decay=[0, 1])
    groups = [
        group(cell, [3.0, 3.1], diverged=(5,)) if cell["lr"] == 2 - cell["decay"] else group(cell, [2.0, 2.1])
        for cell in cells
    ]
    found = by_key(effects(groups))
    assert found.keys() == {"lr", "decay"}
    assert all(effect.p is None and not effect.alike for effect in found.values())


def test_a_setting_that_another_one_determines_has_no_effect_of_its_own() -> None:
    cells = [{"model": i, "big": i > 1, "lr": j} for i in (0, 1, 2) for j in (0, 1)]
    found = by_key(effects([group(cell, [3.0, 3.1]) for cell in cells]))
    assert (found["big"].p, found["big"].together) == (None, ("model",))


@pytest.mark.parametrize("count", [12, 300])
def test_a_random_search_gets_rank_correlations(count: int) -> None:
    generator = np.random.default_rng(0)
    cells = [{"lr": 10 ** generator.uniform(-4, -2), "wd": generator.uniform(0, 1)} for _ in range(count)]
    lr = by_key(effects([group(cell, [3 - 100 * cell["lr"]]) for cell in cells]))["lr"]
    assert lr.p is None
    assert lr.rank is not None
    assert (lr.rank.r, lr.rank.n) == (pytest.approx(-1), count)
    assert math.isnan(lr.size)


def test_p_is_corrected_for_the_number_of_settings() -> None:
    generator = np.random.default_rng(4)
    cells = grid(a=[0, 1], b=[0, 1], c=[0, 1])
    found = effects([group(cell, generator.standard_normal(4) + 2 * cell["a"]) for cell in cells]).effects
    raw = sorted(effect.test.p for effect in found if effect.test)
    assert min(effect.p for effect in found if effect.p is not None) == pytest.approx(3 * raw[0])


def test_an_interaction_is_named_and_takes_p_away_from_its_settings_alone() -> None:
    generator = np.random.default_rng(5)
    cells = grid(a=[0, 1], b=[0, 1], c=[0, 1])
    groups = [group(cell, 0.1 * generator.standard_normal(3) + (cell["a"] != cell["b"]) + cell["c"]) for cell in cells]
    found = effects(groups)
    assert [interaction.keys for interaction in found.interactions if interaction.p < 0.05] == [("a", "b")]
    assert (by_key(found)["a"].p, by_key(found)["b"].p) == (None, None)
    assert by_key(found)["a"].remark == "depends on b"
    assert by_key(found)["c"].p < 0.001


def test_the_interaction_of_two_by_two_is_a_t_test_of_the_difference_of_differences() -> None:
    y = np.random.default_rng(6).standard_normal((2, 2, 5))
    found = effects([group({"a": i, "b": j}, y[i, j]) for i in range(2) for j in range(2)])
    theirs = stats.ttest_1samp(y[0, 0] - y[0, 1] - y[1, 0] + y[1, 1], 0)
    (interaction,) = found.interactions
    assert (interaction.test.f, interaction.p) == (
        pytest.approx(theirs.statistic**2),
        pytest.approx(theirs.pvalue),
    )


Draw = Callable[[np.random.Generator, int], np.ndarray]


def normal(generator: np.random.Generator, count: int) -> np.ndarray:
    return generator.standard_normal(count)


def skewed(generator: np.random.Generator, count: int) -> np.ndarray:
    return np.asarray(np.exp(generator.standard_normal(count)))


def crossing(cell: Cell) -> float:
    return 2.0 * (cell["a"] - 1) * (cell["b"] - 1)


def crossing_where_complete(cell: Cell) -> float:
    return 2.0 * (cell["a"] - 1) * (5.0, 1.0, -1.0)[cell["b"]]  # a has no effect on average where b is 1 or 2


THREE = grid(a=[0, 1, 2], b=[0, 1, 2])
SWEEP = grid(a=[1, 2, 4, 8, 16])
NULL: Sequence[tuple[str, list[Cell], dict[str, Any]]] = [
    ("equal noise", THREE, {}),
    ("seeds shared", THREE, {"shared": 3.0}),
    ("one sweep", SWEEP, {}),
    ("one value ten times as noisy", SWEEP, {"noisy": True}),
    ("one value ten times as noisy in a grid", THREE, {"noisy": True}),
    ("ten settings with two seeds, one noisy", grid(a=list(range(10))), {"noisy": True, "seeds": 2}),
    ("few seeds of a noisy value", SWEEP, {"noisy": True, "seeds": 6, "noisy_seeds": 2}),
    ("models", THREE, {"start": ("a",), "shared": 3.0}),
    ("skewed", THREE, {"draw": skewed}),
    ("one seed", THREE, {"seeds": 1}),
    ("effects that cross, and unequal numbers of seeds", THREE, {"mean": crossing, "noisy_seeds": 9}),
    ("effects that cross, and a missing setting", THREE[1:], {"mean": crossing_where_complete}),
    ("effects that cross, one seed", THREE, {"mean": crossing, "seeds": 1}),
]


def false_effects(
    cells: list[Cell],
    *,
    seeds: int = 3,
    noisy_seeds: int | None = None,
    noisy: bool = False,
    shared: float = 0.0,
    start: Sequence[str] = (),
    draw: Draw = normal,
    mean: Callable[[Cell], float] = lambda cell: 0.0,
    times: int = 150,
) -> float:
    """Return the share of studies that name an effect of `a` or `b`, although none has one on average."""
    generator = np.random.default_rng(0)
    false = 0
    first = cells[0]["a"]
    for _ in range(times):
        luck: dict[Any, np.ndarray] = {}
        groups = []
        for cell in cells:
            own = tuple(cell[key] for key in start)
            count = noisy_seeds if noisy_seeds and cell["a"] == first else seeds
            block = luck.setdefault(own, shared * generator.standard_normal(10))
            noise = draw(generator, count) * (10 if noisy and cell["a"] == first else 1)
            groups.append(group(cell, block[:count] + noise + mean(cell), start=own))
        false += any(effect.p is not None and effect.p < 0.05 for effect in effects(groups).effects)
    return false / times


@pytest.mark.slow
@pytest.mark.parametrize(("cells", "options"), [case[1:] for case in NULL], ids=[name for name, *_ in NULL])
def test_no_more_effects_are_found_in_noise_than_the_level_allows(cells: list[Cell], options: dict[str, Any]) -> None:
    times = 150
    assert false_effects(cells, **options, times=times) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / times)


def test_a_clear_effect_is_found_with_three_seeds() -> None:
    assert false_effects(THREE, mean=lambda cell: 2.0 * cell["a"] / 2, times=60) > 0.5
