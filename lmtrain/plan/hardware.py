"""A run on hardware: its memory against what this machine has, its time and price on GPUs that may not be here."""

import os
from dataclasses import dataclass
from pathlib import Path

from lmtrain.files.unsupported import free_bytes
from lmtrain.machine import GPUS, Gpu
from lmtrain.plan.memory import StepCost
from lmtrain.system import System

# Share of a matrix product's speed that a whole training step reaches; measured with llama_50m.
STEP_EFFICIENCY = {"cpu": 0.7, "cuda": 0.4}

SAVE_BYTES_PER_SECOND = 150e6  # writing, syncing and hashing a checkpoint on an ordinary disk
LONG_WITHOUT_SAVE_S = 3600
# Share of a GPU's memory that a run can count on: the rest is fragments and what a kernel asks for inside itself.
USABLE = 0.95
KERNEL_S = 6e-6  # from one kernel's start to the next one's, however small, in an eager step
# Share of the memory's bandwidth that a copy reaches: measured on an H100 3.0 of 3.35 TB/s, on an H200 4.3 of 4.8.
COPY_SHARE = 0.9
# Chosen so that the published speeds in `_times` come out: the share of what operations move in an eager step that a
# compiled one still moves, and the speed of fused attention, forward and backward, to that of a large product.
UNFUSED, ATTENTION_SHARE = 0.6, 0.5
UNKNOWN_MFU = 0.35  # of a model whose step can't be followed

# What a run's time on a GPU is spent on.
COMPUTE, MEMORY, OPTIMIZER, LAUNCHES = "compute", "memory", "optimizer", "launches"
BOUND_BY = {
    COMPUTE: "matrix products, at the speed that the card multiplies",
    MEMORY: "the memory's bandwidth: activations, the loss, narrow matrix products; a wider model uses the GPU better",
    OPTIMIZER: "the memory's bandwidth, in the optimizer: more tokens a step make it rarer",
    LAUNCHES: "starting kernels, not computing; a larger data.batch_size costs nothing, a smaller GPU is as fast",
}


@dataclass(frozen=True)
class Workload:
    """What a run computes on a CUDA device; `step` is None where a step can't be followed."""

    flops: float  # of the whole run, by the model's count
    steps: int
    micro_batches: int  # of a step
    step: StepCost | None


@dataclass(frozen=True)
class GpuEstimate:
    """A run on one GPU; None where memory or price is unknown. `bound_by` is what takes most of its time."""

    gpu: Gpu
    fits: bool | None
    seconds: float
    dollars: float | None
    bound_by: str
    mfu: float


def gpu_estimates(
    work: Workload, peak_bytes: int | None, *, mfu: float | None = None, dollars_per_hour: float | None = None
) -> list[GpuEstimate]:
    """Return an estimate for every known GPU that can be rented; `dollars_per_hour` replaces the table's prices.

    With `mfu`, a run takes the time of its FLOPs at that share of the peak, or that of starting its kernels, if that is
    longer.
    """
    found = []
    for gpu in GPUS:
        price = gpu.dollars_per_hour if dollars_per_hour is None else dollars_per_hour
        if gpu.dollars_per_hour is None:
            continue
        times = _times(work, gpu, mfu)
        started = times.pop(LAUNCHES, 0.0)
        computed = sum(times.values())
        seconds = max(computed, started)
        found.append(
            GpuEstimate(
                gpu,
                None if peak_bytes is None else peak_bytes <= USABLE * gpu.memory_gb * 1e9,
                seconds,
                None if price is None else price * seconds / 3600,
                LAUNCHES if started > computed else max(times, key=lambda kind: times[kind]),
                work.flops / (gpu.peak_flops * seconds) if seconds else 0.0,
            )
        )
    return found


def _times(work: Workload, gpu: Gpu, mfu: float | None) -> dict[str, float]:
    """Return the seconds of a run by what they are spent on.

    A GPU does one kernel after the other, so their times add up; the next ones are started meanwhile. Each product
    takes the time of its FLOPs or of its bytes, whichever is longer (the roofline of Williams et al. 2009), and any
    other operation that of its bytes. So GPT-2 124M comes to 0.47M tokens/s on an H100 (published: nanoGPT 0.38M,
    modded-nanogpt's control run 0.45M), 0.20M on an A100 (llm.c 0.18M), 0.11M on an RTX 4090 (nanoGPT 0.11M), and to
    41% of a B200's peak (38%, of a 70B model).
    """
    kernels = work.step.micro_batch_kernels if work.step else 0
    times = {LAUNCHES: work.steps * work.micro_batches * kernels * KERNEL_S}
    if mfu is not None or work.step is None:
        return {COMPUTE: work.flops / (gpu.peak_flops * (mfu or UNKNOWN_MFU)), **times}
    by_bytes, by_flops = gpu.bandwidth * COPY_SHARE, gpu.peak_flops * gpu.product_share
    compute = memory = 0.0
    for flops, size in work.step.micro_batch_operations.products:
        if flops / by_flops >= size / by_bytes:
            compute += flops / by_flops
        else:
            memory += size / by_bytes
    compute += work.step.micro_batch_operations.attention_flops / (by_flops * ATTENTION_SHARE)
    memory += UNFUSED * work.step.micro_batch_operations.other_bytes / by_bytes
    update = work.step.update_operations
    optimizer = sum(max(flops / by_flops, size / by_bytes) for flops, size in update.products)
    optimizer += update.other_bytes / by_bytes
    micro_batches = work.steps * work.micro_batches
    times |= {COMPUTE: micro_batches * compute, MEMORY: micro_batches * memory, OPTIMIZER: work.steps * optimizer}
    return times


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
