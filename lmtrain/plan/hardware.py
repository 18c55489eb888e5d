"""What a run takes on machines: memory against what is there, time and money on GPUs that are not."""

import os
from dataclasses import dataclass
from pathlib import Path

from lmtrain.gpu_models import GPUS, Gpu

SAVE_BYTES_PER_SECOND = 150e6  # writing, syncing and hashing a checkpoint on an ordinary disk
LONG_WITHOUT_SAVE_S = 3600
# Share of a GPU's memory that a run can count on: the rest is fragments and what a kernel asks for inside itself.
USABLE = 0.95
KERNEL_S = 6e-6  # from one kernel's start to the next one's, however small, in an eager step


@dataclass(frozen=True)
class Offer:
    """A run on one GPU; None where the memory or the price is unknown."""

    gpu: Gpu
    fits: bool | None
    seconds: float
    dollars: float | None


def offers(
    flops: float, kernels: int, peak_bytes: int | None, *, mfu: float, dollars_per_hour: float | None = None
) -> list[Offer]:
    """The run on every known GPU that is rented; `dollars_per_hour` takes the place of the table's prices.

    A run takes the time of its FLOPs at `mfu` of the peak, or that of starting its kernels, if that is longer.
    """
    found = []
    for gpu in GPUS:
        price = gpu.dollars_per_hour if dollars_per_hour is None else dollars_per_hour
        if gpu.dollars_per_hour is None:
            continue
        seconds = max(flops / (gpu.peak_flops * mfu), kernels * KERNEL_S)
        fits = None if peak_bytes is None else peak_bytes <= USABLE * gpu.memory_gb * 1e9
        found.append(Offer(gpu, fits, seconds, None if price is None else price * seconds / 3600))
    return found


def memory_available() -> int | None:
    """Bytes of RAM that a new process can have, within a container's limit; None where the kernel does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pages = os.sysconf_names.get("SC_PHYS_PAGES")
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") if pages is not None else None
    group = Path("/sys/fs/cgroup")
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cache = int(stat["inactive_file"]) + int(stat["active_file"])  # the kernel's own, given up on demand
        limit = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()) + cache
    except (OSError, ValueError, KeyError):  # no container, or "max"
        return free
    return max(min(free, limit), 0)


def disk_free(path: Path) -> int:
    """Bytes free where the path is, or will be."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    stat = os.statvfs(there)
    return stat.f_bavail * stat.f_frsize
