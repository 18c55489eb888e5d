"""What a difference is worth is read from the curve of the better setting."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.comparison.statistics.worth import AXIS_WORDS, Saving, SettingCurve, in_words, mean_curve, savings

STEPS = np.arange(50.0, 1001, 50)


def power_law(shift: float, *, tokens: float = 1024.0, seconds: float = 0.5) -> SettingCurve:
    axes = {"step": STEPS, "tokens": STEPS * tokens, "flops": STEPS * tokens * 6e6, "seconds": STEPS * seconds}
    return SettingCurve(axes, 2 + shift + 10 * STEPS**-0.5)


def test_a_saving_is_the_place_on_the_better_curve() -> None:
    # 10/sqrt(step) at step 800 and 1000: the worse setting ends where the better one was at step 800
    difference = 10 * (800**-0.5 - 1000**-0.5)
    found = savings(power_law(0), power_law(difference), difference / 2, difference, 2 * difference)
    assert found.keys() == AXIS_WORDS.keys()
    for saving in found.values():
        assert math.isclose(saving.value, 0.2, abs_tol=1e-9)
        assert not saving.at_least
    low, high = ((10 / (10 * 1000**-0.5 + by)) ** 2 for by in (difference / 2, 2 * difference))
    assert math.isclose(found["step"].low, 1 - low / 1000, abs_tol=1e-3)  # linear between two evaluations
    assert math.isclose(found["step"].high, 1 - high / 1000, abs_tol=1e-3)


def test_a_slower_step_costs_time() -> None:
    difference = 10 * (800**-0.5 - 1000**-0.5)
    found = savings(power_law(0, seconds=0.6), power_law(difference), difference / 2, difference, difference)
    assert math.isclose(found["step"].value, 0.2, abs_tol=1e-9)
    assert math.isclose(found["seconds"].value, 1 - 0.6 * 800 / (0.5 * 1000), abs_tol=1e-9)
    assert in_words("lion", "adamw", found) == ("lion saves 20% (11% to 20%) of the steps, tokens and FLOPs of adamw")


@given(st.floats(-0.1, 0.4), st.floats(0, 0.2), st.floats(0, 0.2))
def test_a_saving_is_above_zero_exactly_if_the_difference_is(middle: float, below: float, above: float) -> None:
    better, worse = power_law(0), power_law(middle)
    saving = savings(better, worse, middle - below, middle, middle + above)["step"]
    assert saving.low <= saving.value <= saving.high <= 1
    for share, difference in ((saving.low, middle - below), (saving.value, middle), (saving.high, middle + above)):
        if abs(difference) > 1e-9:
            assert (share > 0) == (difference > 0)


def test_exchanged_roles_give_the_inverse() -> None:
    difference = 0.03
    forth = savings(power_law(0), power_law(difference), difference, difference, difference)["step"].value
    back = savings(power_law(difference), power_law(0), -difference, -difference, -difference)["step"].value
    assert math.isclose((1 - forth) * (1 - back), 1)


def test_a_setting_ahead_from_the_first_evaluation_saves_at_least_that() -> None:
    found = savings(power_law(0), power_law(5), 4.0, 5.0, 6.0)
    assert found["step"] == Saving(0.95, 0.95, 1.0, at_least=True)
    assert in_words("a", "b", {"step": found["step"]}) == "a saves at least 95% of the steps of b"


def test_an_early_dip_is_not_taken_for_success() -> None:
    curve = power_law(0)
    dip = SettingCurve(curve.axes, curve.values - 0.5 * (STEPS == 300))
    difference = 10 * (800**-0.5 - 1000**-0.5)
    assert savings(dip, power_law(difference), 0, difference, difference)["step"].value == pytest.approx(0.2)


def test_an_axis_that_a_run_lacks_is_left_out() -> None:
    curve = power_law(0)
    without = SettingCurve(dict(curve.axes) | {"flops": np.full(len(STEPS), np.nan)}, curve.values)
    assert savings(without, power_law(0.01), 0.005, 0.01, 0.02).keys() == {"step", "tokens", "seconds"}


def test_a_mean_curve_is_over_the_shared_steps_up_to_the_place() -> None:
    def run(every: int, value: float) -> dict[str, np.ndarray]:
        steps = np.arange(10.0, 101, 10)
        losses = np.where(steps % every == 0, value - steps / 100, np.nan)
        return {"step": steps, "tokens": steps * 8, "flops": steps * 48, "seconds": steps / 2, "val/loss": losses}

    curve = mean_curve([run(10, 4.0), run(20, 5.0)], "val/loss", "step", 70, 1)
    assert curve is not None
    assert curve.axes["step"].tolist() == [20, 40, 60, 70]
    assert curve.axes["tokens"].tolist() == [160, 320, 480, 560]
    np.testing.assert_allclose(curve.values, 4.5 - curve.axes["step"] / 100)
    higher = mean_curve([run(10, 4.0)], "val/loss", "tokens", 400, -1)
    assert higher is not None
    np.testing.assert_allclose(higher.values[-1], -3.5)
    whole = mean_curve([run(20, 4.0)], "val/loss", "step", None, 1)
    assert whole is not None
    assert whole.axes["step"].tolist() == [20, 40, 60, 80, 100]
    assert mean_curve([run(20, 4.0)], "val/loss", "step", 10, 1) is None  # before the first evaluation
    assert mean_curve([run(200, 4.0)], "val/loss", "step", None, 1) is None


@pytest.mark.slow
def test_the_interval_holds() -> None:
    """The seeds shift the curves, and each evaluation has noise of its own; 95% intervals of the difference hold."""
    generator = np.random.default_rng(7)
    true = 1 - 800 / 1000
    difference = 10 * (800**-0.5 - 1000**-0.5)
    held, n, tables = 0, 5, 2000
    for _ in range(tables):
        shifts = 0.03 * generator.standard_normal((2, n, 1))
        curves = [power_law(shift).values + noise for shift, noise in zip((0, difference), shifts, strict=True)]
        curves = [values + 0.002 * generator.standard_normal(values.shape) for values in curves]
        differences = curves[1][:, -1] - curves[0][:, -1]
        middle, half = differences.mean(), 2.776 * differences.std(ddof=1) / math.sqrt(n)
        better, worse = (SettingCurve(power_law(0).axes, values.mean(0)) for values in curves)
        saving = savings(better, worse, middle - half, middle, middle + half)["step"]
        held += saving.low <= true <= saving.high
    assert held / tables > 0.95 - 3 * math.sqrt(0.95 * 0.05 / tables)


def test_an_axis_on_which_nothing_is_saved_is_left_out() -> None:
    found = {"step": Saving(-3.0, -15.0, -2.0), "tokens": Saving(0.2, 0.1, 0.3), "flops": Saving(0.5, 0.0, 0.5, True)}
    assert (
        in_words("small batches", "large ones", found)
        == "small batches saves 20% (10% to 30%) of the tokens of large ones"
    )
    assert not in_words("a", "b", {"step": found["step"]})
