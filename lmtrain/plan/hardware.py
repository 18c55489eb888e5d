"""A run on hardware: its memory against what this machine has, its time and price on GPUs that may not be here."""

import os
from dataclasses import dataclass
from pathlib import Path

from lmtrain.files.unsupported import free_bytes
from lmtrain.machine import GPUS, Gpu
from lmtrain.system import System

# Share of a matrix product's speed that a whole training step reaches; measured with llama_50m.
STEP_EFFICIENCY = {"cpu": 0.7, "cuda": 0.4}

SAVE_BYTES_PER_SECOND = 150e6  # writing, syncing and hashing a checkpoint on an ordinary disk
LONG_WITHOUT_SAVE_S = 3600
# Share of a GPU's memory that a run can count on: the rest is fragments and what a kernel asks for inside itself.
USABLE = 0.95
KERNEL_S = 6e-6  # from one kernel's start to the next one's, however small, in an eager step


@dataclass(frozen=True)
class GpuEstimate:
    """A run on one GPU; None where memory or price is unknown."""

    gpu: Gpu
    fits: bool | None
    seconds: float
    dollars: float | None


def gpu_estimates(
    flops: float, kernels: int, peak_bytes: int | None, *, mfu: float, dollars_per_hour: float | None = None
) -> list[GpuEstimate]:
    """Return an estimate for every known GPU that can be rented; `dollars_per_hour` replaces the table's prices.

    A run takes the time of its FLOPs at `mfu` of the peak, or that of starting its kernels, if that is longer.
    """
    found = []
    for gpu in GPUS:
        price = gpu.dollars_per_hour if dollars_per_hour is None else dollars_per_hour
        if gpu.dollars_per_hour is None:
            continue
        seconds = max(flops / (gpu.peak_flops * mfu), kernels * KERNEL_S)
        fits = None if peak_bytes is None else peak_bytes <= USABLE * gpu.memory_gb * 1e9
        found.append(GpuEstimate(gpu, fits, seconds, None if price is None else price * seconds / 3600))
    return found


def memory_available() -> int | None:
    """Return the bytes of RAM that a new process can have, in a container's limit; None if the kernel is silent."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pages = os.sysconf_names.get("SC_PHYS_PAGES")
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") if pages is not None else None
    group = Path("/sys/fs/cgroup")
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        cache = int(stat["inactive_file"]) + int(stat["active_file"])  # the kernel's own, given up on demand
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        limit += cache - used
    except (OSError, ValueError, KeyError):  # no container, or "max"
        return free
    return max(min(free, limit), 0)


def disk_free(path: Path) -> int | None:
    """Return the bytes free where the path is, or will be; None if the file system does not say."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return free_bytes(there)


def estimate_seconds(flops: float, system: System) -> float:
    """Return how long the device takes for so many FLOPs of training, from one matrix product measured now."""
    return flops / (system.measure_flops() * STEP_EFFICIENCY[system.device.type])
