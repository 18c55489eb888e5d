"""Records the matrix products and the attention of a step, so that they can be repeated without the rest.

Also says how much work the operations of a step are.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Operations:
    """The work of operations: FLOPs and bytes of every matrix product, and the bytes of all other operations.

    A product reads its inputs and writes its result. An operation without a result writes as much as it reads. Fused
    attention is counted by its FLOPs alone, because it moves few bytes for them.
    """

    products: Sequence[tuple[float, int]]
    attention_flops: float
    other_bytes: int

    @property
    def flops(self) -> float:
        return sum(flops for flops, _ in self.products) + self.attention_flops


@dataclass(frozen=True)
class TensorLayout:
    """The shape, strides and dtype of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Integers:
    """A tensor of integers with its values: the lengths of documents, for example, decide how much is computed."""

    values: tuple[int, ...]
    layout: TensorLayout


@dataclass(frozen=True)
class ResultOf:
    """A tensor that an earlier call returned: the backward of attention needs the results of its forward."""

    call: "Call"
    index: int


@dataclass(frozen=True)
class Call:
    """A call of an operation: tensors are replaced by their layouts, and all other arguments are kept.

    Calls of the same operation with the same layouts are equal, so that they can be counted.

    Attributes:
        operation: The operation, as torch's dispatcher calls it.
        args: Positional arguments.
        kwargs: Keyword arguments as pairs.
        flops: FLOPs; 0 if torch has no formula for the operation.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    flops: float

    @property
    def name(self) -> str:
        """Return the operation's name without namespace and overload, such as `mm`."""
        return str(self.operation.overloadpacket.__name__)

    @property
    def is_attention(self) -> bool:
        return is_attention(self.operation)

    @property
    def layouts(self) -> list[TensorLayout]:
        """Return the layouts of the tensors among the arguments, without results of earlier calls."""
        return [value for value in _flat((self.args, self.kwargs)) if isinstance(value, TensorLayout)]


def is_attention(operation: Any) -> bool:
    """Return whether an operation of torch's dispatcher is fused attention, forward or backward."""
    name = operation.overloadpacket.__name__
    return "attention" in name or "attn" in name


class CallLog:
    """Collects calls in the order in which they happen; `keep_integers` keeps the values of tensors of integers."""

    def __init__(self, *, keep_integers: bool = False) -> None:
        self.calls: list[Call] = []
        self._keep_integers = keep_integers
        self._results: dict[int, tuple[weakref.ref[Any], TensorLayout, ResultOf]] = {}

    def add(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, flops: float) -> None:
        """Add a call that returned `out`."""
        describe = self._result_or_layout if is_attention(operation) else layout_of
        call = Call(
            operation,
            tuple(_replaced(value, describe) for value in args),
            tuple((name, _replaced(value, describe)) for name, value in kwargs.items()),
            flops,
        )
        self.calls.append(call)
        if call.is_attention:
            for index, result in enumerate(out if isinstance(out, tuple | list) else [out]):
                if isinstance(result, Tensor):
                    storage = result.untyped_storage()
                    self._results[id(storage)] = weakref.ref(storage), layout_of(result), ResultOf(call, index)

    def _result_or_layout(self, tensor: Tensor) -> TensorLayout | ResultOf | Integers:
        storage, layout = tensor.untyped_storage(), layout_of(tensor)
        made, made_layout, result = self._results.get(id(storage), (None, None, None))
        is_result = made is not None and made() is storage and made_layout == layout
        if is_result and result is not None:
            return result
        if self._keep_integers and tensor.dtype in (torch.int32, torch.int64):
            return Integers(tuple(tensor.flatten().tolist()), layout)
        return layout


def layout_of(tensor: Tensor) -> TensorLayout:
    return TensorLayout(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)


def _replaced(value: Any, describe: Any) -> Any:
    """Return an argument with tensors described, and with tuples in place of lists, so that it can be counted."""
    if isinstance(value, Tensor):
        return describe(value)
    return tuple(_replaced(item, describe) for item in value) if isinstance(value, list | tuple) else value


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value
