"""Wraps what lmtrain uses from torch's private attributes: fake tensors, and a start without torch's compiler.

A new version of torch may change any of it. Then `plan` fails or runs start more slowly, and
`tests/test_torch_internals.py` fails.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

COMPILER = "torch._dynamo"
# The attribute in which `torch._compile._disable_dynamo` keeps what the compiler made of a function.
HIDDEN = "__dynamo_disable"


def fake_tensors() -> AbstractContextManager[Any]:
    """Return a context in which tensors have shapes, but no memory and no numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # slow to import

    mode: AbstractContextManager[Any] = FakeTensorMode()
    return mode


def postpone_compiler_import() -> int:
    """Make torch's optimizers work without importing the compiler; return the number of changed methods.

    Optimizers hide some of their methods from the compiler and tell it to stop its graph at others. For that, torch
    imports the compiler when the first optimizer is built, which takes more than a second. There is nothing to hide
    from a compiler that is not there, so until anything else imports it, these methods skip that. From then on they
    do what torch's own do.

    Call this before an optimizer is built. It changes nothing where the compiler is already imported, or where this
    version of torch has other methods.
    """
    if COMPILER in sys.modules:
        return 0
    import torch

    changed = 0
    for cls in [torch.optim.Optimizer, *_subclasses(torch.optim.Optimizer)]:
        for name, method in list(vars(cls).items()):
            if _made_by(method, "_disable_dynamo.<locals>.inner") and not hasattr(method.__wrapped__, HIDDEN):
                setattr(method.__wrapped__, HIDDEN, _unhidden(method.__wrapped__, method))
                changed += 1
            elif name == "step" and _made_by(method, "_use_grad_for_differentiable.<locals>._use_grad"):
                cls.step = _without_graph_breaks(method)  # type: ignore[attr-defined]
                changed += 1
    return changed


def _unhidden(function: Callable[..., Any], hidden: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls `function`, or `hidden` once the compiler is imported."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if COMPILER not in sys.modules:
            return function(*args, **kwargs)
        if getattr(function, HIDDEN, None) is call:
            delattr(function, HIDDEN)  # so that torch asks the compiler
        return hidden(*args, **kwargs)

    return call


def _without_graph_breaks(step: Any) -> Callable[..., Any]:
    """Return an optimizer's `step` that does what torch's does around it, except for telling the compiler."""

    @functools.wraps(step)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if COMPILER in sys.modules:
            return step(self, *args, **kwargs)
        import torch

        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step.__wrapped__(self, *args, **kwargs)

    return call


def _made_by(method: Any, maker: str) -> bool:
    """Return whether a method was made by one of torch's decorators, given the name of the decorator's function."""
    return hasattr(method, "__wrapped__") and getattr(getattr(method, "__code__", None), "co_qualname", "") == maker


def _subclasses(cls: type) -> Iterator[type]:
    subclasses: list[type] = type.__subclasses__(cls)
    for subclass in subclasses:
        yield subclass
        yield from _subclasses(subclass)


def abort_process_group() -> None:
    """End the default process group without waiting for its collectives, where this version of torch can do that."""
    from torch.distributed import distributed_c10d

    abort = getattr(distributed_c10d, "_abort_process_group", distributed_c10d.destroy_process_group)
    abort()
