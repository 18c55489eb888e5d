"""What the trainer asks of the processes of a run; here for a run of one process."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lmtrain.errors import DataError
from lmtrain.parallel.layout import Layout
from lmtrain.parallel.world import ALONE, World

T = TypeVar("T")


class Parallel:
    """Shares the work of a run among its processes. This class is a run of one process; subclasses have several.

    Every process calls the same methods in the same order. All of them get the same results, to the bit, so that they
    take the same decisions.
    """

    world: World = ALONE
    shares_model = False  # whether each process has only a part of the parameters
    param_dtype: torch.dtype | None = None  # in which weights are used, if that is not their own
    layout: Layout | None = None  # which process has which rows of the parameters, after `split`

    def build(self, make: Callable[[], nn.Module]) -> nn.Module:
        """Return the model that `make` builds on the CPU; it may have no memory before `split`.

        `make` must be able to build it on the meta device, too.
        """
        return make()

    def split(self, model: nn.Module, device: torch.device) -> None:
        """Move a model to this process's device, or this process's share of it, before the optimizer is built."""
        model.to(device)

    def own(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters by name; of a shared model, the rows of this process."""
        return dict(model.named_parameters())

    def updated(self, model: nn.Module, whole: Collection[str]) -> dict[str, nn.Parameter]:
        """Return the parameters that the optimizer of this process updates, by name.

        It must update the parameters in `whole` as a whole, and each number of the others by itself.
        """
        return self.own(model)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model as the trainer calls it. Its parameters stay those of the model itself."""
        return model

    def accumulating(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return the context for forward and backward of a micro-batch; after the `last`, gradients are sums over all.

        Gradients are sent only in the last one.
        """
        return contextlib.nullcontext()

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the part of a loss that this process has computed, so that gradients add up over all processes."""
        return loss

    def computes_without_targets(self, *, last: bool) -> bool:
        """Return whether this process must also compute a micro-batch without targets, because others wait for it."""
        return False

    def gradients_ready(self) -> None:
        """Give the parameters to update their gradients, after the last backward of a step."""

    def share_overflows(self, found: Iterable[Tensor]) -> None:
        """Let all processes know of gradients that overflowed: scalars on the device, changed in place."""

    def clip(self, params: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """Scale the gradients down to a norm over all processes, if theirs is larger; return theirs, a scalar."""
        return nn.utils.clip_grad_norm_(params, max_norm)

    def weights_ready(self) -> None:
        """Let all processes have the weights after an update."""

    def free_weights(self) -> None:
        """Free the weights that were gathered for forwards without backward; they may change before the next one."""

    def mine(self, items: Iterable[T]) -> Iterator[tuple[T, bool]]:
        """Yield the items that this process computes: of every `world.size` items, the one with its rank.

        Where all processes must compute together, one without an item computes that of another process. The second
        value says whether the item counts.
        """
        return ((item, True) for item in items)

    def load(self, load: Callable[[], T], targets_of: Callable[[T], int]) -> tuple[T, int]:
        """Return what `load` returns, and the sum over all processes of its targets.

        Raises:
            DataError: `load` raised it in any of the processes.
        """
        loaded = load()
        return loaded, targets_of(loaded)

    def raise_together(self, error: DataError | None, request: BaseException | None = None) -> None:
        """Raise an error in the data, or else a request to stop, in all processes, if any of them has one."""
        for each in (error, request):
            if each is not None:
                raise each

    def combined(self, total: Tensor, losses: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the sum of `total` over all processes, and the losses of all micro-batches in the order of the data.

        All are scalars on the device.
        """
        return total, losses

    def sum_float64(self, numbers: Tensor) -> Tensor:
        """Return the sums over all processes of numbers (N,) on the device, in float64."""
        return numbers

    def agreed(self, request: BaseException | None) -> BaseException | None:
        """Return a request to stop if any process has one, the same kind in all; a pruning wins over a signal."""
        return request

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what `make` returns in the first process, where alone it is called; pickled, so only plain values."""
        return make()

    def after_first(self, topic: str, make: Callable[[], T]) -> T:
        """Return what `make` returns in the first process, as JSON gives it back; the others wait while that lives.

        A topic may be used once in a run.
        """
        return make()

    def every(self, value: T) -> list[T]:
        """Return the values of all processes, by rank; pickled, so only plain values."""
        return [value]

    def merged(self, values: Mapping[str, T]) -> dict[str, T]:
        """Return the entries of all processes; pickled, so only plain values."""
        return dict(values)

    def gathered(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return the tensors of all processes, by rank. They are on the CPU, and equally large everywhere."""
        return [tensors]

    def wait_for_all(self) -> None:
        """Wait until every process has come to this point."""

    def collectives(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which other code may communicate; it explains the errors of a lost connection."""
        return contextlib.nullcontext()

    def class_name(self, model: nn.Module) -> str:
        """Return the name of a model's class, which `split` may have changed."""
        return type(model).__name__

    def describe(self) -> str | None:
        """Return how the processes work together, in words; None if there is one alone."""
        return None

    def close(self) -> None:
        """Leave the other processes. Nothing else may be called afterwards."""
