"""The choices of the config group `parallel`."""

import torch
from pydantic import PositiveFloat, PositiveInt

from lmtrain.parallel.base import Parallel
from lmtrain.parallel.ddp import Ddp
from lmtrain.parallel.peers import Peers


def none(device: torch.device, peers: Peers | None) -> Parallel:
    """Return what a run of one process needs.

    Raises:
        ValueError: There are several processes.
    """
    if peers is not None:
        raise ValueError(f"parallel=none: {peers.world.size} processes were started; use parallel=auto")
    return Parallel()


def ddp(
    device: torch.device,
    peers: Peers | None,
    *,
    timeout_s: PositiveFloat = 300.0,
    bucket_mb: PositiveFloat = 25.0,
    world_size: PositiveInt | None = None,
) -> Parallel:
    """Return DDP: each process has the whole model, and a share of every batch.

    Args:
        device: The device of this process.
        peers: The connection to the other processes; None in a run of one process.
        timeout_s: Seconds after which a process that does not answer ends the run.
        bucket_mb: Megabytes of gradients that are sent at once.
    """
    return Ddp(device, peers, timeout_s=timeout_s, bucket_mb=bucket_mb)


def auto(
    device: torch.device,
    peers: Peers | None,
    *,
    timeout_s: PositiveFloat = 300.0,
    bucket_mb: PositiveFloat = 25.0,
    world_size: PositiveInt | None = None,
) -> Parallel:
    """Return what suits the number of processes: nothing for one, DDP for several. The arguments are those of `ddp`."""
    return none(device, peers) if peers is None else ddp(device, peers, timeout_s=timeout_s, bucket_mb=bucket_mb)
