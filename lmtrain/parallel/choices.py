"""The choices of the config group `parallel`."""

from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt

from lmtrain.parallel.base import Parallel
from lmtrain.parallel.ddp import Ddp
from lmtrain.parallel.peers import Peers
from lmtrain.parallel.world import refuse_other_number


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
    world_size: PositiveInt | None = None,
    timeout_s: PositiveFloat = 300.0,
    rank_logs: bool = False,
    bucket_mb: PositiveFloat = 25.0,
) -> Parallel:
    """Return DDP: each process has the whole model, and a share of every batch.

    Args:
        device: The device of this process.
        peers: The connection to the other processes; None in a run of one process.
        world_size: The number of processes, which the command starts on this host; null means as many as torchrun has
            started, or one.
        timeout_s: Seconds after which a process that does not answer ends the run.
        rank_logs: Whether each process but the first writes a log of its own, `rank-N.log` in the run directory.
        bucket_mb: Megabytes of gradients that are sent at once.
    """
    refuse_other_number(world_size, peers.world.size if peers else 1)
    return Ddp(device, peers, timeout_s=timeout_s, bucket_mb=bucket_mb)


def fsdp(
    device: torch.device,
    peers: Peers | None,
    *,
    world_size: PositiveInt | None = None,
    timeout_s: PositiveFloat = 300.0,
    rank_logs: bool = False,
    shards: PositiveInt | None = None,
    reshard_after_forward: bool = True,
    reduce_each_micro_batch: bool = False,
    param_dtype: Literal["bfloat16"] | None = None,
    reduce_dtype: Literal["float32", "bfloat16"] = "float32",
) -> Parallel:
    """Return FSDP: each process has a share of the model, of the optimizer's state and of every batch.

    Args:
        device: The device of this process.
        peers: The connection to the other processes; None in a run of one process.
        world_size: The number of processes, which the command starts on this host; null means as many as torchrun has
            started, or one.
        timeout_s: Seconds after which a process that does not answer ends the run.
        rank_logs: Whether each process but the first writes a log of its own, `rank-N.log` in the run directory.
        shards: Processes that hold one copy of the model together; null means all of them. With fewer, there are
            several copies (HSDP).
        reshard_after_forward: Free the weights of a layer after its forward, and gather them again for its backward.
        reduce_each_micro_batch: Send gradients after each micro-batch instead of after the last one of a step: more
            traffic, but no process holds the gradients of the whole model.
        param_dtype: Number format in which weights are gathered and used; null means their own, float32.
        reduce_dtype: Number format in which gradients are sent.

    Raises:
        ValueError: The number of processes is another one.
    """
    refuse_other_number(world_size, peers.world.size if peers else 1)
    from lmtrain.parallel.fsdp import Fsdp  # slow to import

    return Fsdp(
        device,
        peers,
        timeout_s=timeout_s,
        shards=shards,
        reshard_after_forward=reshard_after_forward,
        reduce_each_micro_batch=reduce_each_micro_batch,
        param_dtype=getattr(torch, param_dtype) if param_dtype else None,
        reduce_dtype=getattr(torch, reduce_dtype),
    )


def auto(
    device: torch.device,
    peers: Peers | None,
    *,
    world_size: PositiveInt | None = None,
    timeout_s: PositiveFloat = 300.0,
    rank_logs: bool = False,
    bucket_mb: PositiveFloat = 25.0,
) -> Parallel:
    """Return what suits the number of processes: nothing for one, DDP for several. The arguments are those of `ddp`.

    A run of several processes takes `fsdp` instead if the whole model does not fit each device.
    """
    refuse_other_number(world_size, peers.world.size if peers else 1)
    return none(device, peers) if peers is None else ddp(device, peers, timeout_s=timeout_s, bucket_mb=bucket_mb)
