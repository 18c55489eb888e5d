"""Measures how fast this CPU multiplies matrices in each number format, once a machine."""

import hashlib
import json
import logging
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from lmtrain.files.limited import read_json
from lmtrain.files.numbers import as_float
from lmtrain.machine import cache_folder, cpu_flags, cpu_name

log = logging.getLogger(__name__)

BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})  # of Intel, of Intel and AMD, of Arm
# Large enough that tiles of AMX are filled; a product in bfloat16 takes half a millisecond, less than a time slice.
SIZE = 512
ROUNDS = 7
# Variables that limit the instructions of oneDNN, which multiplies in bfloat16.
LIMITING_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


@dataclass(frozen=True)
class CpuSpeed:
    """FLOP/s of a matrix product on one thread; bfloat16 is 0 if the CPU has no hardware for it."""

    float32: float
    bfloat16: float

    @property
    def bfloat16_gain(self) -> float:
        """The speed in bfloat16, relative to float32."""
        return self.bfloat16 / self.float32


def cpu_speed() -> CpuSpeed:
    """Return the speed of this CPU, which is measured once and then kept in the cache folder.

    All runs on a machine must agree, or two replicates would compute in different formats. So the first measurement
    counts, also if several jobs of a sweep measure at the same time. Where nothing can be kept, every process measures.
    """
    return _speed_of(machine_key(), cache_folder())


def machine_key() -> str:
    """Return a short text that differs between machines and libraries whose speed or compiled code may differ."""
    limits = [os.environ.get(name, "") for name in LIMITING_VARIABLES]
    facts = [cpu_name(), *sorted(cpu_flags()), torch.__version__, *limits]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


@cache
def _speed_of(key: str, folder: Path | None) -> CpuSpeed:
    path = folder / "cpu-speed" / f"{key}.json" if folder is not None else None
    if path is not None and (kept := _read(path)) is not None:
        return kept
    speed = measure_cpu_speed()
    return speed if path is None else _keep(path, speed)


def measure_cpu_speed(rounds: int = ROUNDS) -> CpuSpeed:
    """Measure the product in each format that the CPU has hardware for; it takes a few hundredths of a second.

    The formats take turns and the best try of each counts, so that other processes matter little. One thread computes:
    several would wait for one another on a busy machine.
    """
    formats = [torch.float32]
    if cpu_flags() & BFLOAT16_FLAGS:
        formats.append(torch.bfloat16)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        matrices = {dtype: torch.ones(SIZE, SIZE, dtype=dtype) for dtype in formats}
        best = dict.fromkeys(formats, float("inf"))
        for _ in range(1 + rounds):  # the first try of a format also prepares it, and is never the best
            for dtype, matrix in matrices.items():
                started = time.perf_counter()
                torch.mm(matrix, matrix)
                best[dtype] = min(best[dtype], time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    flops = {dtype: 2 * SIZE**3 / seconds for dtype, seconds in best.items()}
    return CpuSpeed(flops[torch.float32], flops.get(torch.bfloat16, 0.0))


def _read(path: Path) -> CpuSpeed | None:
    found = read_json(path)
    float32, bfloat16 = (as_float(found.get(name)) for name in ("float32", "bfloat16"))
    return CpuSpeed(float32, bfloat16) if float32 > 0 and bfloat16 >= 0 else None


def _keep(path: Path, speed: CpuSpeed) -> CpuSpeed:
    """Keep a measurement, and return it or the one that another process has kept before."""
    partial = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(exist_ok=True)
        partial.write_text(json.dumps({**asdict(speed), "cpu": cpu_name(), "torch": torch.__version__}), "utf-8")
        try:
            os.link(partial, path)  # fails if the file exists
        except FileExistsError:
            if (first := _read(path)) is not None:
                return first
            os.replace(partial, path)  # the file is damaged
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()
    except OSError as error:  # also on a file system without links
        log.debug("the speed of the CPU is not kept: %s", error)
    return speed
