"""Several processes with the whole model each, on `torch.nn.parallel.DistributedDataParallel`."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lmtrain.parallel.peers import Peers
from lmtrain.parallel.several import Several


class Ddp(Several):
    """Every process has the whole model, and gradients are summed over all while they are computed.

    Args:
        device: The device of this process.
        peers: The connection to the other processes; None for a run of one process.
        timeout_s: Seconds after which a process that does not answer ends the run.
        bucket_mb: Megabytes of gradients that are sent at once.
    """

    def __init__(self, device: torch.device, peers: Peers | None, *, timeout_s: float, bucket_mb: float) -> None:
        super().__init__(device, peers, timeout_s=timeout_s)
        self.bucket_mb = bucket_mb
        self._ddp: DistributedDataParallel | None = None

    def wrap(self, model: nn.Module) -> nn.Module:
        with self.collectives():
            self._ddp = DistributedDataParallel(
                model,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                **_without_copies_of_buffers(),  # they are equal everywhere; a copy in each forward would cost time
                gradient_as_bucket_view=True,  # no second copy of the gradients
                bucket_cap_mb=self.bucket_mb,
            )
        return self._ddp

    @contextlib.contextmanager
    def accumulating(self, *, last: bool) -> Iterator[None]:
        assert self._ddp is not None
        with self.collectives(), contextlib.nullcontext() if last else self._ddp.no_sync():
            yield

    def computes_without_targets(self, *, last: bool) -> bool:
        return last and self.world.size > 1  # the last micro-batch also sends the gradients

    def describe(self) -> str:
        return f"{self.processes} with DDP"


def _without_copies_of_buffers() -> dict[str, Any]:
    """Return DDP's argument for forwards that copy no buffers, whose name torch 2.13 changed."""
    now = "forward_sync_buffers"
    known = now in inspect.signature(DistributedDataParallel).parameters
    return {now if known else "broadcast_buffers": False}
