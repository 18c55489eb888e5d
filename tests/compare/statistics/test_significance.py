"""The statistics agree with scipy and textbooks, and simulations confirm their error rates."""

import math

import numpy as np
import pytest
from scipy import stats

from lmtrain.compare.statistics.effects import effects
from lmtrain.compare.statistics.significance import half_width, holm_correction, spearman

A = [3.01, 3.03, 2.99, 3.02, 3.00]
B = [3.04, 3.05, 3.01, 3.06, 3.02]


def test_the_interval_of_a_mean_agrees_with_scipy() -> None:
    low, high = stats.t.interval(0.95, len(A) - 1, np.mean(A), stats.sem(A))
    assert half_width(A) == pytest.approx((high - low) / 2)
    assert math.isnan(half_width([3.0]))


def test_holms_correction_agrees_with_the_paper() -> None:
    # The running maximum of 0.01·4, 0.02·3, 0.03·2, 0.04·1.
    assert holm_correction([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm_correction([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_effects_agree_with_the_textbooks_analysis_of_variance() -> None:
    generator = np.random.default_rng(5)
    cells = generator.standard_normal((3, 2, 4)) + np.array([0.0, 0.5, 1.0])[:, None, None]
    settings = [{"lr": i, "batch": j} for i in range(3) for j in range(2)]
    found, noise = effects(settings, [list(cells[s["lr"], s["batch"]]) for s in settings], ["lr", "batch"])
    within = np.sum((cells - cells.mean(axis=2, keepdims=True)) ** 2) / (3 * 2 * 3)
    grand = cells.mean()
    between = {
        "lr": 8 * np.sum((cells.mean(axis=(1, 2)) - grand) ** 2) / 2,
        "batch": 12 * np.sum((cells.mean(axis=(0, 2)) - grand) ** 2) / 1,
    }
    assert noise is not None
    assert (noise.sd**2, noise.df) == (pytest.approx(within), 18)
    for effect, df in zip(sorted(found, key=lambda effect: effect.key), (1, 2), strict=True):
        f = between[effect.key] / within
        assert effect.f == pytest.approx(f)
        assert effect.p == pytest.approx(stats.f.sf(f, df, 18))
    sizes = {effect.key: effect.size for effect in found}
    assert sizes["lr"] == pytest.approx(np.ptp(cells.mean(axis=(1, 2))))
    assert [effect.key for effect in found] == sorted(sizes, key=sizes.__getitem__, reverse=True)


def test_with_one_setting_the_effect_is_a_one_way_analysis_of_variance() -> None:
    samples = [A, B, [3.1, 3.2]]
    found, _ = effects([{"lr": i} for i in range(3)], samples, ["lr"])
    theirs = stats.f_oneway(*samples)
    assert (found[0].f, found[0].p) == (pytest.approx(theirs.statistic), pytest.approx(theirs.pvalue))


def test_settings_that_always_change_together_are_one_effect() -> None:
    settings = [{"lr": i, "batch": 8 * i, "decay": j} for i in (1, 2) for j in (0, 1)]
    samples = [[3.0 + 0.1 * s["lr"] + 0.01 * k for k in range(2)] for s in settings]
    by_key = {effect.key: effect for effect in effects(settings, samples, ["lr", "batch", "decay"])[0]}
    assert by_key.keys() == {"lr", "decay"}
    assert by_key["lr"].alike == ("batch",)
    assert by_key["lr"].size == pytest.approx(0.1)
    assert by_key["lr"].p is not None
    assert by_key["lr"].p < 1e-4
    assert by_key["decay"].size == pytest.approx(0)


def test_a_setting_that_another_one_determines_has_no_effect_of_its_own() -> None:
    settings = [{"model": i, "big": i > 1} for i in (0, 1, 2, 0, 1, 2)]
    by_key = {effect.key: effect for effect in effects(settings, [[3.0, 3.1]] * 6, ["model", "big"])[0]}
    assert (by_key["big"].p, by_key["big"].together) == (None, ("model",))


def test_settings_without_matching_runs_have_no_p() -> None:
    settings = [{"lr": i, "batch": i % 2, "decay": (i * 7) % 4} for i in range(4)]
    assert all(effect.p is None for effect in effects(settings, [[3.0, 3.1]] * 4, ["lr", "batch", "decay"])[0])


def test_rank_correlation_agrees_with_scipy() -> None:
    generator = np.random.default_rng(3)
    xs = generator.integers(0, 6, 25).astype(float)  # with ties
    ys = np.exp(0.4 * xs) + generator.standard_normal(25)
    ours, theirs = spearman(xs, ys), stats.spearmanr(xs, ys)
    assert ours is not None
    assert (ours.r, ours.p) == pytest.approx((theirs.statistic, theirs.pvalue))
    perfect = spearman([1, 2, 3, 4, 5], [1, 8, 27, 64, 125])
    assert perfect is not None
    assert perfect.r == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [1, 2, 3, 4]) is None
    assert spearman([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]) is None


@pytest.mark.parametrize("count", [12, 300])  # runs; with 300 of them, the model would have 600 columns
def test_a_random_search_gets_rank_correlations(count: int) -> None:
    generator = np.random.default_rng(0)
    settings = [{"lr": 10 ** generator.uniform(-4, -2), "wd": generator.uniform(0, 1)} for _ in range(count)]
    found, _ = effects(settings, [[3 - 100 * setting["lr"]] for setting in settings], ["lr", "wd"])
    lr = next(effect for effect in found if effect.key == "lr")
    assert lr.p is None
    assert lr.rank is not None
    assert (lr.rank.r, lr.rank.n) == (pytest.approx(-1), count)


def test_means_of_an_unbalanced_design_are_adjusted_to_the_average_of_the_other_settings() -> None:
    settings = [{"lr": lr, "batch": batch} for lr in (1, 2) for batch in (8, 16)]
    samples = [[1.0] * 9, [3.0], [2.0], [4.0]]  # lr adds 1 and batch 2; nine of twelve runs have the first setting
    found, _ = effects(settings, samples, ["lr", "batch"])
    overall = float(np.mean([value for values in samples for value in values]))
    means = {effect.key: effect.means for effect in found}
    assert means["lr"][2] - means["lr"][1] == pytest.approx(1)
    assert means["batch"][16] - means["batch"][8] == pytest.approx(2)
    for key, weights in {"lr": {1: 10, 2: 2}, "batch": {8: 10, 16: 2}}.items():
        assert np.average([means[key][level] for level in weights], weights=list(weights.values())) == (
            pytest.approx(overall)
        )
