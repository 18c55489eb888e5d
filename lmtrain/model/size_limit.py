"""Refuses a model that is too large before it takes memory: builds it without memory and counts its tensors."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

CREATE = frozenset({"empty", "full", "ones", "rand", "randn", "zeros"})  # functions that create a tensor
MOST_POSITIONS = 10_000_000
# Functions that fill a tensor with numbers; they are skipped for tensors without memory.
FILL = frozenset({"copy_", "fill_", "normal_", "trunc_normal_", "uniform_", "zero_"})
MARGIN = 2  # factor above the stored size: a layer may briefly have a separate tensor before it is tied


@dataclass(frozen=True)
class SizeLimit:
    """Holds the bytes that a model may take, and the parameters of its checkpoint, as tensors and elements.

    `tensors` and `elements` are None if there is no checkpoint yet.
    """

    bytes: int
    tensors: int | None = None
    elements: int | None = None


class ModelTooLargeError(ValueError):
    """A model exceeds its size limit; the message names what is too large."""


def refuse_too_large(build: Callable[[], nn.Module], limit: SizeLimit) -> None:
    """Build a model without memory, and stop at the first tensor that exceeds the limit.

    A model that can't be built this way is not checked; building it for real reports the problem.

    Raises:
        ModelTooLargeError: the model has more bytes than the limit, or more than `MARGIN` times the stored parameters.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        counter = _Counter(limit)
        stack.enter_context(register_module_parameter_registration_hook(counter.add_parameter))
        stack.enter_context(register_module_buffer_registration_hook(counter.add_buffer))
        stack.enter_context(WithoutMemory())
        try:
            build()
        except ModelTooLargeError:
            raise
        except Exception as error:  # building the model for real reports the problem
            if "overflow" in str(error).lower():  # torch's error for sizes beyond 64 bits
                raise ModelTooLargeError("has tensors that fit into no memory") from error


class _Counter:
    """Counts the tensors that modules contain while they are being built."""

    def __init__(self, limit: SizeLimit) -> None:
        self.limit = limit
        self.params = self.elements = self.bytes = 0
        self._held: dict[int, weakref.ref[Tensor]] = {}

    def add_parameter(self, module: nn.Module, name: str, param: Tensor | None) -> None:
        self._add(param, 1)

    def add_buffer(self, module: nn.Module, name: str, buffer: Tensor | None) -> None:
        self._add(buffer, 0)  # not counted as a parameter, since a buffer need not be stored

    def _add(self, tensor: Tensor | None, params: int) -> None:
        if tensor is None or id(tensor) in self._held:  # a tied tensor counts once
            return
        key, elements, nbytes = id(tensor), tensor.numel(), tensor.nbytes

        def gone(_: object) -> None:  # called when another tensor has replaced this one
            del self._held[key]
            self._change(-params, -params * elements, -nbytes)

        self._held[key] = weakref.ref(tensor, gone)
        self._change(params, params * elements, nbytes)
        for counted, most, what in (
            (self.params, self.limit.tensors, "tensors"),
            (self.elements, self.limit.elements, "parameters"),
        ):
            if most is not None and counted > MARGIN * most:
                raise ModelTooLargeError(f"has more than {MARGIN} times the {most:,} {what} of the checkpoint")
        if self.bytes > self.limit.bytes:
            raise ModelTooLargeError(f"takes more than the {self.limit.bytes / 1e9:.1f} GB of this machine")

    def _change(self, params: int, elements: int, nbytes: int) -> None:
        self.params, self.elements, self.bytes = self.params + params, self.elements + elements, self.bytes + nbytes


class WithoutMemory(TorchFunctionMode):
    """Creates tensors without memory. Tables for buffers are computed, unless they are too large.

    `torch.device("meta")` for everything would import the compiler for arithmetic, which takes seconds.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        tensor = args[0] if args else kwargs.get("tensor")  # torch.nn.init passes it by name
        if name in FILL and isinstance(tensor, Tensor) and tensor.is_meta:
            return tensor
        if func is torch.arange and len(args) in (1, 2, 3) and all(isinstance(arg, int | float) for arg in args):
            start, end, step = (0, args[0], 1) if len(args) == 1 else (*args, 1)[:3]
            if step and abs(end - start) > MOST_POSITIONS * abs(step):
                raise ModelTooLargeError(f"computes a table of more than {MOST_POSITIONS:,} positions")
        if name in CREATE and getattr(torch, name) is func:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)
