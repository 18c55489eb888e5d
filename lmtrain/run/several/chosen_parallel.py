"""Decides what `parallel=auto` means for several processes: DDP where the whole model fits each device, else FSDP."""

import os

import torch
from omegaconf import DictConfig, OmegaConf

from lmtrain.config.batch_size import FSDP, batch_sizes, is_auto
from lmtrain.machine import total_memory
from lmtrain.parallel.peers import Peers
from lmtrain.parallel.world import LOCAL_WORLD_SIZE, World
from lmtrain.parts import build_model, build_system
from lmtrain.plan.make import simulated
from lmtrain.plan.memory import CUDA_CONTEXT, StepSettings
from lmtrain.plan.world.memory import memory_of_process
from lmtrain.plan.world.processes import FLOAT32, Processes
from lmtrain.plan.world.units import WholeTensors, units_of
from lmtrain.system import System
from lmtrain.terminal.units import si_unit

AUTO, DDP = "lmtrain.parallel.choices.auto", "lmtrain.parallel.choices.ddp"
TOPIC = "parallel"
OF_BOTH, BUCKETS = ("world_size", "timeout_s", "rank_logs"), "bucket_mb"  # keys of both choices, and one of DDP
# Weights, gradients, their buckets, AdamW's state, and as much again for activations: no need to look closer.
SURELY_ENOUGH = 10 * FLOAT32


def with_chosen_parallel(cfg: DictConfig, peers: Peers) -> tuple[DictConfig, list[str]]:
    """Return the config with DDP or FSDP instead of `auto`, and notes about that for the log.

    The first process decides for all, because hosts may have different devices.
    """
    if OmegaConf.select(cfg, "parallel._target_") != AUTO:
        return cfg, []
    notes = []
    if peers.world.is_first:
        system = build_system(cfg, peers.world)
        available = device_bytes(system, peers.world)
        needed = bytes_of_whole_model(cfg, system, peers.world, available)
        choice = DDP if needed <= available else FSDP
        if choice == FSDP:
            needs, has = si_unit(needed, "B"), si_unit(available, "B")
            notes.append(f"parallel=auto: FSDP, because a process with the whole model needs {needs} and has {has}")
        peers.tell(TOPIC, choice)
    else:
        choice = peers.ask(TOPIC, 0)
    cfg, own = cfg.copy(), cfg.parallel
    keys = [key for key in own if key in OF_BOTH or (choice == DDP and key == BUCKETS)]
    cfg.parallel = {"_target_": choice, **{key: own[key] for key in keys}}
    return cfg, notes


def bytes_of_whole_model(cfg: DictConfig, system: System, world: World, enough: int) -> int:
    """Return the memory of a process with the whole model; only roughly if that is less than half of `enough`.

    It is 0 if it is not known, because the model can't be built without real data.
    """
    try:
        with torch.device("meta"):
            model = build_model(cfg)
    except (RuntimeError, NotImplementedError):
        return 0
    units = units_of(model)
    roughly = SURELY_ENOUGH * units.numel
    if roughly <= enough // 2:
        return roughly
    batch_size = 1 if is_auto(cfg) else cfg.data.batch_size
    micro_batches = min(2, batch_sizes(cfg).sequences // world.size // batch_size)
    ema_decay = cfg.trainer.get("ema_decay")
    settings = StepSettings(
        system.device.type, system.dtype, micro_batches, batch_size, cfg.data.block_size, ema_decay=ema_decay
    )
    step, _ = simulated(cfg, settings)
    if step is None:
        return roughly
    memory = memory_of_process(step, Processes(world.size), units, micro_batches, WholeTensors.of({}, 1))
    return sum(memory.values()) + (CUDA_CONTEXT if system.device.type == "cuda" else 0)


def device_bytes(system: System, world: World) -> int:
    """Return the memory that a process can use: that of its GPU, or its share of this host's."""
    if system.device.type == "cuda":
        return torch.cuda.get_device_properties(system.device).total_memory
    return total_memory() // int(os.environ.get(LOCAL_WORLD_SIZE) or world.size)
