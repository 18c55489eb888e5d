"""Bounds how far rounding may change a result. The bound is computed in float64, so it is equal on every processor."""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Unit roundoffs: the largest relative error of one operation.
FLOAT64 = 2.0**-53
FLOAT32 = 2.0**-24
TENSOR_FLOAT32 = 2.0**-11
FLOAT16 = 2.0**-11
BFLOAT16 = 2.0**-8
SAMPLES = 4
DRAWN_SIGNS = 1 << 17
MARGIN = 4.0

Context = contextlib.AbstractContextManager[Any]


class Perturbed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Changes every float64 value that an operator writes by ±`relative` of itself, with a random sign."""

    def __init__(self, relative: float, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.relative, self.generator = relative, torch.Generator().manual_seed(seed)
        self.signs = self._draw((DRAWN_SIGNS,))

    def move(self, value: Any) -> None:
        if isinstance(value, list | tuple):
            for each in value:
                self.move(each)
        elif isinstance(value, Tensor) and value.dtype == torch.float64:
            value.mul_(1 + self.relative * self._signs_for(value))  # infinity stays infinity

    def _signs_for(self, value: Tensor) -> Tensor:
        """Return random signs; a piece of those drawn at the start, at a random place, because drawing is slow."""
        if value.numel() > DRAWN_SIGNS // 2:
            return self._draw(value.shape)
        start = int(torch.randint(DRAWN_SIGNS - value.numel(), (), generator=self.generator))
        return self.signs[start : start + value.numel()].view(value.shape)

    def _draw(self, shape: Sequence[int]) -> Tensor:
        return torch.randint(2, tuple(shape), generator=self.generator).double().mul_(2).sub_(1)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        schema = func._schema
        for index, argument in enumerate(schema.arguments):
            if argument.is_write:  # the operator works in place
                self.move(args[index] if index < len(args) else kwargs.get(argument.name))
        if not any(returned.alias_info for returned in schema.returns):  # a view would be changed a second time
            self.move(result)
        return result


def rounding_error(compute: Callable[[], Sequence[Tensor]], terms: int, unit: float) -> list[float]:
    """Bound the error of each result of `compute` in a format whose unit roundoff is `unit`.

    `compute` computes in float64. `terms` is the length of its longest sum. For a format whose products are added in
    float32 it is 2, for the roundings of the two factors.

    A rounded sum of n products equals the exact sum for factors that differ by at most n · u, in any order of the
    additions (Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1). Therefore every value is changed
    by n · u, and the bound is the largest change of the result among `SAMPLES` random choices of the signs. Real errors
    are about a hundredth of it: the error of a sum grows with √n, and the error of most operations is u.
    """
    scale = max(1.0, FLOAT32 / unit)  # errors are linear, so small ones are measured at float32's size and scaled down
    exact = [tensor.detach().clone() for tensor in compute()]
    errors = [0.0] * len(exact)
    for seed in range(SAMPLES):
        with Perturbed(terms * unit * scale, seed):
            moved = [tensor.detach() for tensor in compute()]
        changes = [(one - other).abs().max().item() for one, other in zip(moved, exact, strict=True)]
        errors = [max(pair) for pair in zip(errors, changes, strict=True)]
    return [error / scale for error in errors]


def expected_error(terms: int, unit: float) -> float:
    """Return the relative error of a value that is a sum of so many products in a format.

    `terms` is the length of the longest sum if it is added in this format: then the error is hardly ever more than a
    few times √n · u (Higham and Mary, "A New Approach to Probabilistic Rounding Error Analysis", 2019). A 16-bit or
    TensorFloat-32 product is added in float32, and its error is that of three roundings, of both factors and the
    result: give 3 terms.
    """
    return math.sqrt(terms) * unit


def typical_errors(
    compute: Callable[[Context], Sequence[Tensor]], relative: float, samples: int = SAMPLES
) -> list[float]:
    """Return how far each result of `compute` moves (as a norm) if values have this relative error.

    `compute` computes in float64; what the format rounds, it must compute inside the context that it gets. The norms
    are root mean squares over random choices of the signs. A correct computation is hardly ever off by
    `MARGIN` times as much, because its errors have random signs, too, and are mostly smaller than `relative`.
    """
    exact = [tensor.detach().clone() for tensor in compute(contextlib.nullcontext())]
    squares = [0.0] * len(exact)
    for seed in range(samples):
        moved = [tensor.detach() for tensor in compute(Perturbed(relative, seed))]
        changes = [(one - other).norm().item() for one, other in zip(moved, exact, strict=True)]
        squares = [square + change**2 for square, change in zip(squares, changes, strict=True)]
    return [math.sqrt(square / samples) for square in squares]
