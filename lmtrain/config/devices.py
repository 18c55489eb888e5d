"""Checks that each process of a run finds a device of its own; without torch."""

from collections.abc import Mapping
from typing import Any

from lmtrain.errors import ConfigError
from lmtrain.machine import visible_gpus
from lmtrain.terminal.units import counted

DEVICE = "system.device"


def check_shared_device(cfg: Mapping[str, Any], processes: int) -> None:
    """Raise ConfigError if a checked config gives the same GPU to each of several processes."""
    device = _device(cfg)
    if processes > 1 and device.startswith("cuda:"):
        raise ConfigError(
            f"{DEVICE}={device}: {processes} processes would share this GPU; use {DEVICE}=cuda, which gives each "
            "process its own, and choose GPUs with CUDA_VISIBLE_DEVICES"
        )


def check_own_gpus(cfg: Mapping[str, Any], processes: int, key: str) -> None:
    """Raise ConfigError if a host has GPUs, but fewer than so many processes on it need; the message names the key."""
    check_shared_device(cfg, processes)
    device = _device(cfg)
    if device not in ("auto", "cuda"):
        return
    count = len(visible_gpus())
    if 0 < count < processes:
        fewer = f"give {key}={count}, or " if count > 1 else ""
        raise ConfigError(
            f"{key}={processes}: each process needs a GPU, and {counted(count, 'GPU')} can be seen here; "
            f"{fewer}compute on the CPU with {DEVICE}=cpu"
        )


def _device(cfg: Mapping[str, Any]) -> str:
    return str((cfg.get("system") or {}).get("device", "auto"))
