"""Predicts which micro-batch sizes fit into the memory of the device."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig

from lmtrain.config.batch_size import batch_sizes
from lmtrain.machine import THREADS, available_cores, total_memory
from lmtrain.parts import build_model, build_optimizer, work_of
from lmtrain.plan.hardware import memory_available
from lmtrain.plan.memory import StepSettings, simulate
from lmtrain.system import System

GPU_SHARE = 0.95  # of the free memory; the rest is for what the simulation does not count
CPU_SHARE = 0.7  # of the available RAM; other programs need some too, and without RAM the machine stalls


def usable_memory(system: System) -> int:
    """Return the bytes that a run may use, in addition to those in use now."""
    if system.device.type == "cuda":
        return int(GPU_SHARE * torch.cuda.mem_get_info(system.device)[0])
    available = memory_available()
    if available is None:
        available = total_memory() // 2
    return int(CPU_SHARE * available * _share_of_machine())


def _share_of_machine() -> float:
    """Return the share of the cores that this process is to use; other runs need the same share of the memory."""
    threads = os.environ.get(THREADS, "")
    return min(1.0, int(threads) / available_cores()) if threads.isdecimal() and int(threads) else 1.0


def needed_memory(cfg: DictConfig, system: System, size: int, kept: Mapping[str, Any]) -> int:
    """Return the bytes that a run with this micro-batch size needs, from a simulated step.

    The system chooses what `auto` means for the run, and keeps the choices in `kept`.

    Raises:
        Exception: any error of the model, if it cannot run without data.
    """

    def parts() -> Any:
        model = build_model(cfg)
        return model, build_optimizer(cfg, dict(model.named_parameters()))

    with torch.device("meta"):
        model = build_model(cfg)
    system.choose(work_of(cfg, model), kept)
    largest = max(cfg.trainer.global_batch_size, *(number for _, number in batch_sizes(cfg).points), 0)
    micro_batches = min(largest // size, 2)  # further ones need no more memory
    device = system.device.type
    settings = StepSettings(device, system.dtype, micro_batches, size, cfg.data.block_size)
    cost = simulate(parts, replace(settings, ema_decay=cfg.trainer.get("ema_decay")))
    return cost.peak_bytes + (0 if device == "cuda" else cost.checkpoint_bytes)  # a checkpoint is copied in RAM


def largest_that_fits(cfg: DictConfig, system: System, sizes: Sequence[int], kept: Mapping[str, Any]) -> int | None:
    """Return the largest of the ascending sizes that fits by prediction; None if it says that none fits.

    If the model cannot be simulated, it is the smallest size, from which a trial can go on.
    """
    usable = usable_memory(system)
    low, high = 0, len(sizes)  # all sizes before `low` fit, none from `high` on
    while low < high:
        middle = (low + high) // 2
        try:
            fits = needed_memory(cfg, system, sizes[middle], kept) <= usable
        except Exception:  # a user's model may need real data, and raise anything without it
            return sizes[0]
        low, high = (middle + 1, high) if fits else (low, middle)
    return sizes[low - 1] if low else None
