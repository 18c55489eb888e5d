"""The machine: its CPU, cores and libraries, and what data sheets say of GPUs that it may or may not have."""

import importlib.util
import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """`name` is, as whole words, part of the driver's; `peak_flops` are FLOP/s of dense 16-bit matrix products.

    `bandwidth` is the memory's, in bytes a second; both are the data sheet's. `product_share` is the share of the peak
    that the largest products reach. `dollars_per_hour` is an assumption, one GPU on demand at the cheaper clouds as of
    `PRICED`; None: hardly rented.
    """

    name: str
    memory_gb: float
    peak_flops: float
    bandwidth: float
    product_share: float
    dollars_per_hour: float | None = None
    bfloat16: bool = True


# By which a user says how OpenMP's threads wait: libgomp's, the standard's, and that of Intel's and LLVM's library.
SPIN_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
SPIN_COUNT = 10_000

PRICED = "2025"
# Shares of the peak. Blackwell, Hopper and A100: the largest bfloat16 products that Bekman ("Machine Learning
# Engineering", maximum achievable matmul FLOPS) found: B200 1745 of 2250, H100 795 of 989, A100 271 of 312 TFLOP/s; an
# H100 and an H200 measured for lmtrain reach 798. Cards that their power limit keeps below their clock reach less:
# about 230 of 362 (L40S), 60 of 121 (L4), 75 of 125 (A10), 28 of 65 (T4, which throttles at 70 W) in published tests;
# so do PCIe cards beside SXM ones. GeForce cards and the A10G are rated for sums in float32, and come close to that.
# The first name that fits counts.
GPUS = (
    Gpu("B200", 180, 2250e12, 7.7e12, 0.78, 5.0),
    Gpu("GH200", 96, 989e12, 4.0e12, 0.8, 2.0),
    Gpu("H200", 141, 989e12, 4.8e12, 0.8, 3.5),
    Gpu("H100 PCIe", 80, 756e12, 2.0e12, 0.7, 2.4),
    Gpu("H100 NVL", 94, 835e12, 3.9e12, 0.7),
    Gpu("H100", 80, 989e12, 3.35e12, 0.8, 3.0),
    Gpu("A100-SXM4-40GB", 40, 312e12, 1.555e12, 0.87, 1.3),
    Gpu("A100-PCIE-40GB", 40, 312e12, 1.555e12, 0.75),
    Gpu("A100", 80, 312e12, 2.0e12, 0.87, 1.8),
    Gpu("L40S", 48, 362e12, 0.864e12, 0.64, 1.0),
    Gpu("L4", 24, 121e12, 0.3e12, 0.5, 0.7),
    Gpu("A10G", 24, 70e12, 0.6e12, 0.85, 1.0),
    Gpu("A10", 24, 125e12, 0.6e12, 0.6),
    Gpu("RTX 4090", 24, 165e12, 1.008e12, 0.95, 0.4),
    Gpu("RTX 3090", 24, 71e12, 0.936e12, 0.95, 0.25),
    Gpu("V100", 16, 125e12, 0.9e12, 0.75, bfloat16=False),
    Gpu("T4", 16, 65e12, 0.32e12, 0.43, 0.35, bfloat16=False),
)


def find_gpu(device_name: str) -> Gpu | None:
    """Return the GPU that the driver gives this name; None for one that is not in the table."""
    # As whole words: an L40 is no L4, a T400 no T4, and a laptop's RTX 4090 is another chip.
    whole = r"(?<!\w){}(?!\w| Ti| D\b| Laptop)"
    return next((gpu for gpu in GPUS if re.search(whole.format(re.escape(gpu.name)), device_name)), None)


def cpu_name() -> str:
    """Return the model name of the CPU, or the machine type where the system does not say more."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def is_installed(library: str) -> bool:
    """Return whether a library can be imported. A folder of its name, with data perhaps, is none."""
    found = importlib.util.find_spec(library)
    return found is not None and found.origin is not None


def write_json_with_machine(path: Path, **results: Any) -> None:
    """Write results as JSON, with the machine that they were measured on."""
    machine = {
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
    path.write_text(json.dumps({**results, "machine": machine}, indent=2) + "\n", encoding="utf-8")


def limit_spinning() -> None:
    """Let OpenMP's idle threads spin for a moment only; must come before torch, and with it OpenMP, is loaded.

    By default a thread of libgomp's spins 300,000 times, some milliseconds, before it sleeps: longer than the scheduler
    lets a process run while others wait, so that where several processes compete each burns its turns on waiting.
    `SPIN_COUNT` spins are some tenths of a millisecond: longer than the pauses between a step's operations, shorter
    than a turn. Neither depends on the number of cores; with more threads than cores libgomp itself spins 100 times. A
    user's own setting wins.
    """
    if not any(name in os.environ for name in SPIN_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int:
    """Return the bytes of RAM and swap that this machine has, or that its container may use."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        most += next(1024 * int(line.split()[1]) for line in lines if line.startswith("SwapTotal:"))
        group = Path("/sys/fs/cgroup")
        limits = [(group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.swap.max")]
    except (OSError, StopIteration):
        return most
    return most if "max" in limits else min(most, sum(map(int, limits)))
