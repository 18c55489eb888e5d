"""The floor of a step: the matrix products and the attention of a micro-batch, without everything else.

They have the shapes, strides, dtypes and number of the real ones, and are timed in the same process. No step with the
same mathematics can be faster than they are.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmtrain.plan.calls import Call, Integers, ResultOf, TensorLayout
from lmtrain.system import System

RATE_S = 0.02  # a rate is measured over at least so many seconds
RATE_TRIES = 3


@dataclass(frozen=True)
class ProductRate:
    """The speed of the matrix products of one shape and layout, timed alone.

    Attributes:
        operation: The operation's name, such as `mm`.
        operands: `A B`, with a ᵀ behind an operand that is stored as its transpose.
        rows: The rows of A.
        inner: The columns of A.
        columns: The columns of B.
        batch: The number of products in a call.
        dtype: The number format of the operands.
        times: The number of calls in a micro-batch.
        flops: The FLOPs of a call.
        seconds: The time of a call.
    """

    operation: str
    operands: str
    rows: int
    inner: int
    columns: int
    batch: int
    dtype: str
    times: int
    flops: float
    seconds: float

    @property
    def flops_per_second(self) -> float:
        return self.flops / self.seconds


class Floor:
    """Repeats the products and the attention of a micro-batch; `has_attention` is false if it has no fused attention.

    Args:
        calls: The recorded calls of a micro-batch.
        system: The device to run on.
    """

    def __init__(self, calls: Sequence[Call], system: System) -> None:
        self._system = system
        self.products = _Repeated([call for call in calls if not call.is_attention], system)
        self.attention = _Repeated([call for call in calls if call.is_attention], system)
        self.has_attention = any(call.is_attention for call in calls)
        self.product_flops = sum(call.flops for call in calls if not call.is_attention)

    def seconds(self, micro_batches: int) -> dict[str, float]:
        """Return the seconds of the products and of the attention of that many micro-batches."""
        return {
            "products": self._timed(lambda: self.products.run(micro_batches)),
            "attention": self._timed(lambda: self.attention.run(micro_batches)),
        }

    def rates(self) -> list[ProductRate]:
        """Measure each shape alone; return the rates, with the shape that takes most time first."""
        rates = []
        for call, times in Counter(self.products.calls).items():
            batch, rows, inner, columns = product_size(call)
            seconds = self._seconds_alone(lambda call=call: self.products.run_call(call))  # type: ignore[misc]
            dtype = str(operands_of(call)[-1].dtype).removeprefix("torch.")
            operands = " ".join(
                name + "ᵀ" * is_transposed(at) for name, at in zip("AB", operands_of(call), strict=True)
            )
            size = rows, inner, columns, batch
            rates.append(ProductRate(call.name, operands, *size, dtype, times, call.flops, seconds))
        return sorted(rates, key=lambda rate: rate.times * rate.seconds, reverse=True)

    def _seconds_alone(self, run: Callable[[], object]) -> float:
        run()  # allocates, and lets libraries choose their kernels
        number = max(1, round(RATE_S / max(self._timed(run), 1e-7)))

        def repeat() -> None:
            for _ in range(number):
                run()

        return min(self._timed(repeat) for _ in range(RATE_TRIES)) / number

    def _timed(self, run: Callable[[], object]) -> float:
        self._system.synchronize()
        started = time.perf_counter()
        run()
        self._system.synchronize()
        return time.perf_counter() - started


def product_size(call: Call) -> tuple[int, int, int, int]:
    """Return the batch, rows, inner size and columns of a matrix product; zeros if it is not one of two matrices."""
    first, second = (layout.shape for layout in operands_of(call))
    if len(first) == len(second) == 2:
        return 1, first[0], first[1], second[1]
    if len(first) == len(second) == 3:
        return first[0], first[1], first[2], second[2]
    return 0, 0, 0, 0


def operands_of(call: Call) -> list[TensorLayout]:
    """Return the layouts of the two factors of a matrix product."""
    return [value for value in call.args if isinstance(value, TensorLayout)][-2:]  # `addmm` begins with a summand


def is_transposed(layout: TensorLayout) -> bool:
    """Return whether the matrices of a tensor are stored column by column."""
    return layout.stride[-2] == 1 and layout.stride[-1] != 1


class _Repeated:
    """Calls with tensors to run them on; on CUDA they are recorded as a graph, which the host starts at once."""

    def __init__(self, calls: Sequence[Call], system: System) -> None:
        self.calls = calls
        self._device = system.device
        self._tensors: dict[tuple[TensorLayout, int], Tensor] = {}
        self._results: dict[Call, Any] = {}
        self._arguments: dict[Call, tuple[Sequence[Any], dict[str, Any]]] = {}
        for call in calls:
            if call not in self._arguments:
                self._arguments[call] = self._make_arguments(call)
                result = self.run_call(call)
                if call.is_attention:
                    self._results[call] = result if isinstance(result, tuple) else (result,)
        self._graph = self._recorded() if calls and system.device.type == "cuda" else None

    def run(self, times: int) -> None:
        for _ in range(times):
            if self._graph is not None:
                self._graph.replay()
            else:
                self._run_calls()

    @torch.no_grad()
    def run_call(self, call: Call) -> Any:
        args, kwargs = self._arguments[call]
        return call.operation(*args, **kwargs)

    @torch.no_grad()
    def _run_calls(self) -> None:
        arguments = self._arguments
        for call in self.calls:
            args, kwargs = arguments[call]
            call.operation(*args, **kwargs)

    def _recorded(self) -> "torch.cuda.CUDAGraph | None":
        graph = torch.cuda.CUDAGraph()
        try:
            # Meanwhile, other threads pin memory for micro-batches, which is no part of the graph.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._run_calls()
        except RuntimeError:  # an operation that waits for the device can't be recorded
            torch.cuda.synchronize(self._device)
            return None
        return graph

    def _make_arguments(self, call: Call) -> tuple[Sequence[Any], dict[str, Any]]:
        used: Counter[TensorLayout] = Counter()

        def made(value: Any) -> Any:
            if isinstance(value, ResultOf):
                return self._results[value.call][value.index]
            if isinstance(value, Integers):
                values = torch.tensor(value.values, dtype=value.layout.dtype, device=self._device)
                return values.reshape(value.layout.shape)
            if isinstance(value, TensorLayout):
                used[value] += 1  # two arguments of a call are two tensors; those of several calls are shared
                return self._tensor(value, used[value])
            return [made(item) for item in value] if isinstance(value, tuple) else value

        args = [made(value) for value in call.args]
        used.clear()  # an `out` is one of the arguments, to which a product is added
        return args, {name: made(value) for name, value in call.kwargs}

    def _tensor(self, layout: TensorLayout, number: int) -> Tensor:
        if (layout, number) not in self._tensors:
            self._tensors[layout, number] = tensor_of(layout, self._device)
        return self._tensors[layout, number]


def tensor_of(layout: TensorLayout, device: torch.device) -> Tensor:
    """Return a tensor of small random numbers; true for booleans, and zeros for integers."""
    pairs = zip(layout.shape, layout.stride, strict=True)
    size = 1 + sum((length - 1) * stride for length, stride in pairs) if 0 not in layout.shape else 0
    if layout.dtype.is_floating_point:
        # Not zeros: a GPU needs less power for them, and then runs faster.
        wide = layout.dtype if layout.dtype.itemsize > 1 else torch.float32  # no 8-bit type has random numbers
        flat = torch.empty(size, dtype=wide, device=device).normal_(std=0.02).to(layout.dtype)
    else:
        flat = torch.full((size,), int(layout.dtype == torch.bool), dtype=layout.dtype, device=device)
    return flat.as_strided(layout.shape, layout.stride)
