"""Tests of formatting numbers for people."""

import math

import pytest

from lmtrain.terminal.units import counted, duration, loss_text, percent, si, si_unit, significant


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (12, "12"), (999, "999"), (1234, "1.23k"), (999_600, "1M"), (50_036_736, "50M"), (3e16, "30P")],
)
def test_si(number: float, text: str) -> None:
    assert si(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (75, "1m15s"), (3600, "1h00m"), (90_000, "1d01h"), (math.inf, "unknown")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_unit_follows_its_prefix() -> None:
    assert [si_unit(number, "B/s") for number in (0.5, 12, 1234567, 5e15)] == [
        "0.5 B/s",
        "12 B/s",
        "1.23 MB/s",
        "5 PB/s",
    ]


def test_only_one_thing_is_singular() -> None:
    assert [counted(number, "job") for number in (0, 1, 2, 1234)] == ["0 jobs", "1 job", "2 jobs", "1,234 jobs"]


def test_significant() -> None:
    assert significant(6.79612) == "6.796"
    assert significant(32011.4) == "3.201e+04"
    assert significant(1.5e9) == "1.50e+09"


def test_a_loss_has_four_decimals_unless_it_is_huge() -> None:
    assert [loss_text(loss) for loss in (2.94154, 123456.0, math.nan, None)] == ["2.9415", "1.235e+05", "nan", "–"]


def test_a_small_share_is_not_zero() -> None:
    assert [percent(share) for share in (1.0, 0.123, 0.00123, 0.0)] == ["100.0%", "12.3%", "0.12%", "0%"]
