"""The speed of products is that of the best try, whatever happens to the others."""

import time
from typing import Any

import pytest
import torch

from lmtrain.hardware import product_speed
from lmtrain.hardware.product_speed import LEAST_TRIES, WARM_UP, fastest_product

CPU = torch.device("cpu")


def measured(monkeypatch: pytest.MonkeyPatch, seconds: list[float], sizes: list[Any], **more: Any) -> float:
    """Return the speed if the tries take these times, and all later ones as long as the last one."""
    now, left = [0.0], list(seconds)

    def mm(*_: Any, **__: Any) -> None:
        now[0] += left.pop(0) if len(left) > 1 else left[0]

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return fastest_product(sizes, torch.float32, CPU, lambda: None, **more)


def test_the_best_try_counts_and_none_of_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    flops = 2 * 4 * 5 * 6
    slow_start = [9.0] * WARM_UP + [1.0] * LEAST_TRIES
    assert measured(monkeypatch, slow_start, [(4, 5, 6)]) == flops
    assert measured(monkeypatch, [1e-9] * WARM_UP + [1.0], [(4, 5, 6)]) == pytest.approx(flops)
    # Short tries go on until other processes had their turns.
    busy = [0.01] * (WARM_UP + LEAST_TRIES + 3) + [0.001]
    assert measured(monkeypatch, busy, [(4, 5, 6)]) == pytest.approx(1000 * flops)


def test_the_fastest_size_counts_and_slow_ones_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, [0.01], [(2, 2, 2), (4, 4, 4)]) == pytest.approx(100 * 2 * 4**3)
    assert measured(monkeypatch, [0.01], [(4, 4, 4), (2, 2, 2)]) == pytest.approx(100 * 2 * 4**3)
    assert measured(monkeypatch, [0.01], [(2, 2, 2), (400, 4, 4)]) == pytest.approx(100 * 2 * 2**3)
    assert measured(monkeypatch, [0.01], [(2, 2, 2)], at_least=1e9) == 1e9


def test_real_products_leave_the_random_generators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_speed, "ENOUGH_S", 0.0)
    before = torch.get_rng_state()
    for dtype in (torch.float32, torch.bfloat16):
        assert fastest_product([(64, 32, 16)], dtype, CPU, lambda: None) > 0
    assert torch.equal(torch.get_rng_state(), before)
