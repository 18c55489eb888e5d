"""What processes that work together do in the same way, however they share the model: they talk to each other."""

import contextlib
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore, PrefixStore  # type: ignore[attr-defined]

from lmtrain.errors import DataError, InterruptedBySignal, LostRankError, PrunedError
from lmtrain.hardware.processes import leave_the_others
from lmtrain.parallel.base import Parallel
from lmtrain.parallel.failure_watch import FailureWatch
from lmtrain.parallel.interface import check_chosen_interface, gloo_on, interface_for, own_address
from lmtrain.parallel.peers import FAILURE_WAIT_S, Peers
from lmtrain.parallel.world import MASTER_ADDRESS, World

T = TypeVar("T")

NO_ANSWER = "another process has ended or does not answer"
PRUNED = 1 << 16  # a request to stop that is not a signal; numbers of signals are smaller


class Several(Parallel):
    """Several processes that compute a share of each batch; subclasses say how they share the model.

    Numbers that decide how a run continues are gathered and added in the order of the ranks, so they are the same bits
    everywhere and in every repetition.

    Args:
        device: The device of this process.
        peers: The connection to the other processes; None for a run of one process.
        timeout_s: Seconds after which a process that does not answer ends the run.
    """

    def __init__(self, device: torch.device, peers: Peers | None, *, timeout_s: float) -> None:
        self.world = peers.world if peers else World()
        self.device, self.peers = device, peers
        leave_the_others()  # those of an earlier run in this process
        self.timeout = timedelta(seconds=timeout_s)
        self.interface: str | None = None
        if peers is not None:
            # Asked for first, because a connection waits long for a process that does not come.
            met = peers.exchange("place", [str(self.world), own_address(os.environ[MASTER_ADDRESS])])
            peers.names = [name for name, _ in met]
            addresses = [address for _, address in met]
            check_chosen_interface(addresses)
            self.interface = interface_for(addresses, self.world.rank)
        with self.collectives(), gloo_on(self.interface):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=PrefixStore("collectives", peers.store) if peers else HashStore(),
                rank=self.world.rank,
                world_size=self.world.size,
                timeout=self.timeout,
                device_id=_with_index(device) if device.type == "cuda" else None,
            )
        self._watch = (
            FailureWatch(peers, lambda: leave_the_others(at_once=True)) if peers and device.type == "cuda" else None
        )

    def scaled(self, loss: Tensor) -> Tensor:
        return loss * self.world.size  # torch takes the mean of the gradients

    def mine(self, items: Iterable[T]) -> Iterator[tuple[T, bool]]:
        return ((item, True) for item in itertools.islice(items, self.world.rank, None, self.world.size))

    def load(self, load: Callable[[], T], targets_of: Callable[[T], int]) -> tuple[T, int]:
        loaded, error = None, None
        try:
            loaded = load()
        except DataError as caught:
            error = caught
        counts = torch.tensor([targets_of(loaded) if loaded is not None else 0, error is not None])
        with self.collectives():
            dist.all_reduce(counts)
        targets, failed = counts.tolist()
        if failed:
            self.raise_together(error)
        assert loaded is not None
        return loaded, targets

    def raise_together(self, error: DataError | None, request: BaseException | None = None) -> None:
        reports = self.every((error, _code_of(request)))
        for each, _ in reports:
            if each is not None:
                raise each
        if most := max(code for _, code in reports):
            raise _request_of(most, request)

    def combined(self, total: Tensor, losses: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        own = torch.stack([total, *losses])
        everyone = torch.stack(self._gather(own))  # (world size, 1 + micro-batches of a process)
        summed = everyone[0, 0].clone()
        for other in everyone[1:, 0]:
            summed += other
        return summed, list(torch.unbind(everyone[:, 1:].T.reshape(-1)))

    def sum_float64(self, numbers: Tensor) -> Tensor:
        total, *others = self._gather(numbers)
        for other in others:
            total = total + other
        return total

    def agreed(self, request: BaseException | None) -> BaseException | None:
        codes = torch.tensor([_code_of(request)])
        with self.collectives():
            dist.all_reduce(codes, dist.ReduceOp.MAX)
        most = int(codes)
        return _request_of(most, request) if most else None

    def from_first(self, make: Callable[[], T]) -> T:
        values = [make() if self.world.is_first else None]
        with self.collectives():
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]  # type: ignore[return-value]

    def after_first(self, topic: str, make: Callable[[], T]) -> T:
        if self.peers is None:
            return make()
        if self.world.is_first:
            made = make()
            self.peers.tell(topic, made)
            return made
        answer: T = self.peers.ask(topic, 0, math.inf)
        return answer

    def every(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.world.size
        with self.collectives():
            dist.all_gather_object(values, value)
        return values

    def gathered(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        by_name = {name: self._gather(tensor) for name, tensor in tensors.items()}
        return [{name: each[rank] for name, each in by_name.items()} for rank in range(self.world.size)]

    def wait_for_all(self) -> None:
        with self.collectives():
            dist.all_reduce(torch.zeros(1))  # a barrier of nccl would need the device

    @property
    def processes(self) -> str:
        """The number of processes in words."""
        return f"{self.world.size} process{'es' * (self.world.size > 1)}"

    def close(self) -> None:
        if self._watch is not None:
            self._watch.stop()
        leave_the_others()

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensor of each process, by rank; all have the same shape."""
        tensors = [torch.empty_like(tensor) for _ in range(self.world.size)]
        with self.collectives():
            dist.all_gather(tensors, tensor.contiguous())
        return tensors

    @contextlib.contextmanager
    def collectives(self) -> Iterator[None]:
        """Turn the error of a collective whose other end is gone into one that says which process failed."""
        try:
            yield
        except RuntimeError as error:
            if not is_of_a_collective(error):
                raise
            raise self._lost(first_sentence(error)) from error

    def _lost(self, reason: str) -> LostRankError:
        """Return what to raise after a connection was lost, and let the others know."""
        if self.peers is None:
            return LostRankError(f"{self.world}: {reason}")
        failure = self.peers.failure(FAILURE_WAIT_S)
        if failure is None:
            reason = f"{NO_ANSWER} ({reason})"
            reported = self.peers.fail(reason)  # it may be the connection of this process that is at fault
            failure = LostRankError(f"{self.world}: {reason}", unheard=not reported and not self.world.is_first)
        if self.world.is_first and NO_ANSWER in str(failure) and (silent := self.peers.silent()):
            return LostRankError(f"{failure}; no answer from {', '.join(silent)}", failure.trace)
        return failure


def _code_of(request: BaseException | None) -> int:
    """Return a number for a request to stop: the larger one wins."""
    return request.number if isinstance(request, InterruptedBySignal) else PRUNED if request is not None else 0


def _request_of(code: int, own: BaseException | None) -> BaseException:
    """Return the request with this number: that of this process, if it has the same one."""
    if own is not None and _code_of(own) == code:
        return own
    return PrunedError("requested in another process") if code == PRUNED else InterruptedBySignal(code)


def _with_index(device: torch.device) -> torch.device:
    """Return a GPU with its number, which torch wants to have; a run of one process may leave it out."""
    return device if device.index is not None else torch.device("cuda", torch.cuda.current_device())


def first_sentence(error: RuntimeError) -> str:
    """Return what is wrong with a connection, without the place in the source of gloo or NCCL and without advice."""
    lines = str(error).splitlines() or [""]
    return re.sub(r"\[[^\]]*\.(?:cc|cpp|h):\d+\]\s*", "", lines[0]).partition(". ")[0]


def is_of_a_collective(error: RuntimeError) -> bool:
    """Return whether an error comes from the connection to other processes."""
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL", "ProcessGroup"))
