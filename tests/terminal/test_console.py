"""Wording for people."""

import math

import pytest

from lmtrain.logger.console import step_line
from lmtrain.terminal.units import duration, si, significant


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


def test_significant() -> None:
    assert significant(6.79612) == "6.796"
    assert significant(32011.4) == "3.201e+04"
    assert significant(1.5e9) == "1.50e+09"


def test_a_step_in_a_line() -> None:
    metrics = {"train/loss": 2.5, "lr": 6e-4, "grad_norm": 0.51, "tokens_per_second": 11_200, "step_time_ms": 500.0}
    assert step_line(40, 200, metrics) == (
        "step  40/200  train 2.5000  lr 6.00e-04  grad 0.510  11.2k tok/s  1m20s left"
    )
    assert step_line(200, 200, {"val/loss": 2.0, "val/perplexity": math.exp(2)}) == (
        "step 200/200  val 2.0000 (perplexity 7.389)"
    )
