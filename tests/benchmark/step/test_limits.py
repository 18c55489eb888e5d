"""The machine's limit is the fastest product that a report shows, in each number format."""

from dataclasses import replace
from typing import Any

import pytest

from lmtrain.benchmark.step import limits
from lmtrain.benchmark.step.findings import Machine
from lmtrain.benchmark.step.floor import ProductRate
from lmtrain.benchmark.step.limits import with_products_of_model
from lmtrain.system import System

MACHINE = Machine("cpu", "cpu", "float32", True, (), None, 1e9, {"bfloat16": 2e9}, 1e10)
RATE = ProductRate("mm", "A B", 8, 4, 2, 1, "float32", 1, 3e9, 1.0)


def test_the_fastest_product_of_the_model_is_measured_in_the_other_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def measured(sizes: Any, dtype: Any, *_: Any, at_least: float) -> float:
        asked.append((sizes, str(dtype), at_least))
        return 7e9

    monkeypatch.setattr(limits, "fastest_product", measured)
    system = System(device="cpu", compile=False)
    slower = replace(RATE, rows=16, flops=1e8)
    in_16_bits = replace(RATE, rows=32, dtype="bfloat16", flops=9e9)
    found = with_products_of_model(MACHINE, [slower, RATE, in_16_bits], system)
    assert (found.large_product, found.other_products) == (3e9, {"bfloat16": 7e9})
    assert asked == [([(8, 4, 2)], "torch.bfloat16", 2e9)]
    assert with_products_of_model(replace(MACHINE, large_product=5e9), [RATE], system).large_product == 5e9
    assert with_products_of_model(MACHINE, [], system) == MACHINE
