"""The typical error of a computation follows from the errors of its values."""

import math

import pytest
import torch

from lmtrain.verify.device.numbers.rounding import FLOAT32, expected_error, rounding_error, typical_errors


def test_the_error_of_a_product_is_that_of_its_value() -> None:
    x = torch.linspace(1, 2, 50, dtype=torch.float64)

    def compute(context) -> list[torch.Tensor]:
        with context:
            return [x * 3]

    (typical,) = typical_errors(compute, 1e-6)
    assert typical == pytest.approx(1e-6 * (3 * x).norm().item(), rel=1e-3)
    (largest,) = rounding_error(lambda: [x * 3], 1, FLOAT32)
    assert largest == pytest.approx(6 * FLOAT32, rel=0.05)


def test_what_is_outside_the_context_is_exact() -> None:
    x = torch.ones(5, dtype=torch.float64)

    def compute(context) -> list[torch.Tensor]:
        with context:
            pass
        return [x * 3]

    assert typical_errors(compute, 1e-3) == [0.0]


def test_errors_grow_with_the_root_of_the_terms() -> None:
    assert expected_error(100, FLOAT32) == 10 * FLOAT32
    assert math.isclose(expected_error(3, 2.0**-8), 3**0.5 / 256)
