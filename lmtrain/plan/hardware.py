"""Estimates a run's time and cost on GPUs, and finds out the free memory and disk space of this machine."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from lmtrain.files.unsupported import free_bytes
from lmtrain.hardware.compilation import STEP_EFFICIENCY
from lmtrain.machine import GPUS, Gpu, find_gpu
from lmtrain.plan.memory import CUDA_CONTEXT, StepCost
from lmtrain.system import System

CUDA_EFFICIENCY = 0.4  # speed of a whole training step over that of a single matrix product; measured with llama_50m

SAVE_BYTES_PER_SECOND = 150e6  # writing, syncing and hashing a checkpoint on an ordinary disk
LONG_WITHOUT_SAVE_S = 3600
# Usable share of a GPU's memory; fragmentation and the temporary memory of kernels take the rest.
USABLE = 0.95
KERNEL_S = 6e-6  # shortest time from the start of a kernel to the start of the next one, in an eager step
# Share of the memory bandwidth that a copy reaches: measured on an H100 3.0 of 3.35 TB/s, on an H200 4.3 of 4.8.
COPY_SHARE = 0.9
# Fitted to the published speeds in `seconds_by_kind`: the share of an eager step's memory traffic that remains when it
# is compiled, and the speed of fused attention, forward and backward, over that of a large matrix product.
UNFUSED, ATTENTION_SHARE = 0.6, 0.5
UNKNOWN_MFU = 0.35  # assumed for a model whose step cannot be simulated

# The kinds of work on which a run's time on a GPU is spent.
COMPUTE, MEMORY, OPTIMIZER, LAUNCHES = "compute", "memory", "optimizer", "launches"
BOUND_BY = {
    COMPUTE: "matrix products, limited by the GPU's peak speed",
    MEMORY: "memory bandwidth, for activations, the loss and narrow matrix products; a wider model uses the GPU better",
    OPTIMIZER: "memory bandwidth, in the optimizer; with more tokens per step it runs less often",
    LAUNCHES: "starting kernels, not computing; a larger data.batch_size costs nothing, and a smaller GPU is as fast",
}


@dataclass(frozen=True)
class Workload:
    """The work of a run on a CUDA device; `step` is None if a step cannot be simulated."""

    flops: float  # of the whole run, as the model counts them
    steps: int
    micro_batches: float  # per step, a mean over the run
    step: StepCost | None


@dataclass(frozen=True)
class GpuEstimate:
    """An estimate of a run on one GPU.

    `fits` and `dollars` are None if memory or price is unknown. `bound_by` is the kind of work that takes most time.
    """

    gpu: Gpu
    fits: bool | None
    seconds: float
    dollars: float | None
    bound_by: str
    mfu: float


def gpu_estimates(
    work: Workload, peak_bytes: int | None, *, mfu: float | None = None, dollars_per_hour: float | None = None
) -> list[GpuEstimate]:
    """Return an estimate for every known GPU that can be rented.

    Args:
        work: The work of the run.
        peak_bytes: The memory that the run needs; None if unknown.
        mfu: A share of the GPU's peak speed at which the run computes; None estimates it for each GPU. If starting the
            kernels takes longer than computing, that is the estimate.
        dollars_per_hour: A price that replaces the known prices.
    """
    found = []
    for gpu in GPUS:
        price = gpu.dollars_per_hour if dollars_per_hour is None else dollars_per_hour
        if gpu.dollars_per_hour is None:
            continue
        times = seconds_by_kind(work, gpu, mfu)
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


def seconds_by_kind(work: Workload, gpu: Gpu, mfu: float | None) -> dict[str, float]:
    """Return the seconds of a run by kind of work.

    A GPU runs kernels one after another, so their times add up, while the next ones are being started. A matrix product
    takes the time for its FLOPs or for its bytes, whichever is longer (the roofline model, Williams et al. 2009). Any
    other operation takes the time for its bytes. For GPT-2 124M this gives 0.47M tokens/s on an H100 (published:
    nanoGPT 0.38M, modded-nanogpt's control run 0.45M), 0.20M on an A100 (llm.c 0.18M), 0.11M on an RTX 4090 (nanoGPT
    0.11M), and 41% of the peak of a B200 (published for a 70B model: 38%).
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
    """Return the bytes of RAM available to a new process, within a container's limit; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pages = os.sysconf_names.get("SC_PHYS_PAGES")
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") if pages is not None else None
    group = Path("/sys/fs/cgroup")
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        cache = int(stat["inactive_file"]) + int(stat["active_file"])  # page cache, which the kernel frees on demand
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        limit += cache - used
    except (OSError, ValueError, KeyError):  # not in a container, or the limit is "max"
        return free
    return max(min(free, limit), 0)


def disk_free(path: Path) -> int | None:
    """Return the free bytes on the disk of a path, which need not exist yet; None if unknown."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return free_bytes(there)


def estimate_seconds(flops: float, system: System) -> float:
    """Return an estimate of the time that the device needs for this many FLOPs of training.

    The estimate is based on a matrix product that is measured now.
    """
    efficiency = CUDA_EFFICIENCY if system.device.type == "cuda" else STEP_EFFICIENCY[system.dtype_name]
    return flops / (system.measure_flops() * efficiency)


def price_here(system: System) -> float | None:
    """Return the dollars per hour of this machine's GPU; None if unknown."""
    gpu = find_gpu(torch.cuda.get_device_name(system.device)) if system.device.type == "cuda" else None
    return gpu.dollars_per_hour if gpu else None


def memory_beside(system: System, checkpoint_bytes: int | None) -> dict[str, int]:
    """Return the memory that is needed in addition to the step's: bytes by purpose."""
    if system.device.type == "cuda":
        return {"CUDA context": CUDA_CONTEXT}
    return {"copy for checkpoints": checkpoint_bytes or 0, "Python and torch": system.process_bytes()}
