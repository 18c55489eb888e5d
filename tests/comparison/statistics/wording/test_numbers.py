"""Numbers are rounded to what is known, and a rounded number never contradicts a verdict."""

import math

import numpy as np
import pytest

from lmtrain.comparison.statistics.wording.numbers import listed, p_in_table, p_in_words, plus_minus


def test_values_are_rounded_to_the_precision_of_the_interval() -> None:
    assert plus_minus(0.0213, 0.0061) == "0.021 ± 0.006"
    assert plus_minus(0.0213, 0.0121) == "0.021 ± 0.012"
    assert plus_minus(0.000001, 0.026968) == "0.000 ± 0.027"
    assert plus_minus(3.14159, math.nan) == "3.142"
    assert plus_minus(120.4, 30.0) == "120 ± 30"
    assert plus_minus(5.968, 0.09, least_digits=3) == "5.97 ± 0.09"


def test_rounding_does_not_move_zero_into_an_interval_or_out_of_it() -> None:
    assert plus_minus(0.1712, 0.1688) == "0.171 ± 0.169"
    for value, half in np.random.default_rng(0).uniform(0.1, 0.11, (200, 2)):
        shown, width = map(float, plus_minus(value, half).split(" ± "))
        assert (shown > width) == (value > half)


def test_p_has_more_digits_near_alpha() -> None:
    assert p_in_words(0.0499) == "p = 0.0499"
    assert p_in_words(0.050001) == "p = 0.050001"
    assert p_in_words(0.0123) == "p = 0.012"
    assert p_in_words(0.00001) == "p < 0.0001"
    assert [p_in_table(p) for p in (0.0123, 0.00001, math.nan)] == ["0.012", "<0.0001", "–"]


@pytest.mark.parametrize(("names", "text"), [(["a"], "a"), (["a", "b"], "a and b"), (list("abcde"), "a, b and 3 more")])
def test_long_lists_are_cut(names: list[str], text: str) -> None:
    assert listed(names, 3) == text
