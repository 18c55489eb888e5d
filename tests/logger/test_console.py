"""The lines that the console shows."""

import math

from lmtrain.logger.console import step_line


def test_a_step_is_shown_in_one_line() -> None:
    metrics = {"train/loss": 2.5, "lr": 6e-4, "grad_norm": 0.51, "tokens_per_second": 11_200, "step_time_ms": 500.0}
    assert step_line(40, 200, metrics) == (
        "step  40/200  train 2.5000  lr 6.00e-04  grad 0.510  11.2k tok/s  1m20s left"
    )
    assert step_line(200, 200, {"val/loss": 2.0, "val/perplexity": math.exp(2)}) == (
        "step 200/200  val 2.0000 (perplexity 7.389)"
    )
