"""Facts about the machine (CPU, cores, memory, libraries), and a table of GPUs with figures from their data sheets."""

import importlib.util
import itertools
import json
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """A GPU with figures from its data sheet.

    Attributes:
        name: Words that appear in the driver's name of the GPU.
        memory_gb: Memory in GB.
        peak_flops: FLOP/s of dense 16-bit matrix products.
        bandwidth: Memory bandwidth in bytes per second.
        product_share: Share of the peak that the largest matrix products reach.
        dollars_per_hour: Assumed price of one GPU on demand at one of the cheaper clouds in the year `PRICED`; None if
            it is hardly offered.
        bfloat16: Whether it computes in bfloat16.
    """

    name: str
    memory_gb: float
    peak_flops: float
    bandwidth: float
    product_share: float
    dollars_per_hour: float | None = None
    bfloat16: bool = True


# A user sets these to choose how OpenMP's threads wait: in libgomp, in the standard, in Intel's and LLVM's library.
SPIN_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
SPIN_COUNT = 10_000
VISIBLE = "CUDA_VISIBLE_DEVICES"
NVIDIA_SMI_TIMEOUT_S = 30
THREADS = "OMP_NUM_THREADS"  # environment variable: the CPU threads of a process
PARENT = "LMTRAIN_PARENT"  # environment variable: a process stops when this one ends (`__main__.stop_with_parent`)

PRICED = "2025"
# Shares of the peak. Blackwell, Hopper and A100: the fastest bfloat16 products measured by Bekman ("Machine Learning
# Engineering", maximum achievable matmul FLOPS): B200 1745 of 2250, H100 795 of 989, A100 271 of 312 TFLOP/s. An H100
# and an H200 measured for lmtrain reach 798. Cards whose power limit lowers their clock reach less in published tests:
# about 230 of 362 (L40S), 60 of 121 (L4), 75 of 125 (A10), 28 of 65 (T4, which throttles at 70 W). PCIe cards also
# reach less than SXM cards. GeForce cards and the A10G are rated for float32 accumulation and come close to that rate.
# The first matching name counts.
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
    """Return the GPU for a name given by the driver, or None if it is not in the table."""
    # Matches whole words: an L40 is not an L4, a T400 is not a T4, and a laptop's RTX 4090 is a different chip.
    whole = r"(?<!\w){}(?!\w| Ti| D\b| Laptop)"
    return next((gpu for gpu in GPUS if re.search(whole.format(re.escape(gpu.name)), device_name)), None)


def cpu_name() -> str:
    """Return the model name of the CPU, or the machine type if the system does not report a name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def cpu_flags() -> frozenset[str]:
    """Return the names of the CPU's features, such as `avx2`, as Linux reports them; none on another system."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(
        next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    )


def cache_folder() -> Path | None:
    """Return the folder for what may be deleted at any time and is the same for all runs; None if it can't be written.

    It is `LMTRAIN_CACHE`, or `lmtrain` in the user's folder for caches. Only the user may read it.
    """
    given, caches = os.environ.get("LMTRAIN_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(given) if given else (Path(caches) if caches else Path.home() / ".cache") / "lmtrain"
        folder = folder.expanduser().absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def is_installed(library: str) -> bool:
    """Return whether a library can be imported; a mere folder of its name, such as one with data, does not count."""
    found = importlib.util.find_spec(library)
    return found is not None and found.origin is not None


def write_json_with_machine(path: Path, **results: Any) -> None:
    """Write results as JSON, together with a description of this machine."""
    machine = {
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
    path.write_text(json.dumps({**results, "machine": machine}, indent=2) + "\n", encoding="utf-8")


def limit_spinning() -> None:
    """Limit the time for which OpenMP's idle threads spin. Call this before torch, and with it OpenMP, is loaded.

    By default, a libgomp thread spins 300,000 times (a few milliseconds) before it sleeps. That is longer than the
    time slice a process gets while others wait, so that competing processes spend their slices on waiting. `SPIN_COUNT`
    spins last a few tenths of a millisecond: longer than the pauses between the operations of a step, shorter than a
    time slice. Neither depends on the number of cores. With more threads than cores, libgomp itself spins only 100
    times. A user's own setting wins.
    """
    if not any(name in os.environ for name in SPIN_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES, without loading CUDA."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        named = [name.strip() for name in visible.split(",")]
        ends = next((index for index, name in enumerate(named) if name in ("", "-1")), len(named))
        return named[:ends]  # CUDA ignores everything from the first invalid name on
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    # UUIDs, because nvidia-smi and CUDA may number GPUs differently. A GPU with MIG devices is used through these.
    names: list[str] = re.findall(r"\(UUID: ([^)]+)\)", listed)
    divided = {gpu for gpu, following in itertools.pairwise(names) if following.startswith("MIG-")}
    return [name for name in names if name.startswith("MIG-") or name not in divided]


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int:
    """Return the bytes of RAM and swap of this machine, or of its container if that has a lower limit."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        most += next(1024 * int(line.split()[1]) for line in lines if line.startswith("SwapTotal:"))
        group = Path("/sys/fs/cgroup")
        limits = [(group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.swap.max")]
    except (OSError, StopIteration):
        return most
    return most if "max" in limits else min(most, sum(map(int, limits)))
