"""Sends the messages of a step without computing anything, to find out how long they take."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from lmtrain.parallel.world import World
from lmtrain.plan.world.processes import FLOAT32
from lmtrain.plan.world.traffic import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER, Collective


class Messages:
    """The messages of a step, of random numbers, in groups of the same processes.

    Args:
        traffic: The messages.
        world: This process among the others, which make the same messages.
        device: Where the tensors are.
    """

    def __init__(self, traffic: Sequence[Collective], world: World, device: torch.device) -> None:
        self._sends: list[Callable[[], None]] = []
        for collective in traffic:
            group = _group(collective, world)
            self._sends += [_sender(collective, group, device)] * (round(collective.times) * collective.calls)

    def send(self) -> None:
        """Send the messages of a step, one after another."""
        for send in self._sends:
            send()


def _group(collective: Collective, world: World) -> dist.ProcessGroup | None:
    """Return the group of this process: ranks that are `stride` apart. All processes make all groups."""
    found, span = None, collective.ranks * collective.stride
    for first in range(0, world.size, span):
        for offset in range(collective.stride):
            ranks = list(range(first + offset, first + span, collective.stride))
            group = dist.new_group(ranks)
            if world.rank in ranks:
                found = group
    return found


def _sender(collective: Collective, group: dist.ProcessGroup | None, device: torch.device) -> Callable[[], None]:
    ranks = collective.ranks
    numel = max(1, round(collective.size / FLOAT32 / collective.calls / ranks)) * ranks
    whole, part = torch.ones(numel, device=device), torch.ones(numel // ranks, device=device)
    sends: dict[str, Callable[[], object]] = {
        ALL_REDUCE: lambda: dist.all_reduce(whole, group=group),
        ALL_GATHER: lambda: dist.all_gather_into_tensor(whole, part, group=group),
        REDUCE_SCATTER: lambda: dist.reduce_scatter_tensor(part, whole, group=group),
    }
    send = sends[collective.kind]

    def wait() -> None:
        send()

    return wait
