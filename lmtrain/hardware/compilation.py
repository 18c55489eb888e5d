"""Chooses whether a run compiles its model, and keeps the compiled code for the next run."""

import contextlib
import os
import shutil
import struct
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmtrain.hardware.cpu_speed import CpuSpeed, machine_key
from lmtrain.hardware.work import Work
from lmtrain.machine import cache_folder

# Of torch.compile's modes:
TIMING_MODES = ("max-autotune", "max-autotune-no-cudagraphs")  # choose kernels by how long they take
GRAPH_MODES = ("reduce-overhead", "max-autotune")  # replay a step as one CUDA graph

# On a CPU, by number format. Measured with the production model: compiling saves 11% (4 x 256, EPYC) to 37% (16 x 512,
# EPYC) in float32, 16% on a Xeon with AMX, and 32% there in bfloat16; 15% of a small Llama's step, nothing of a small
# GPT-2's. The smaller figures count.
SAVED_SHARE = {"float32": 0.1, "float16": 0.1, "bfloat16": 0.25}
# Speed of a step over that of a matrix product; the production model reaches 0.7 in float32.
STEP_EFFICIENCY = {"float32": 0.7, "float16": 0.7, "bfloat16": 0.4}
COMPILE_S = 30.0  # training and evaluation, without code from an earlier run: 7 to 20 s for the first step
WORTH = 2.0  # compile if that saves this many times COMPILE_S: the estimates are rough
LINKING_S = 60.0  # no library takes so long to be written
# Bounds for one thread of any CPU. Runs that they decide on need no measurement.
SLOWEST, FASTEST = CpuSpeed(1e9, 1e9), CpuSpeed(5e11, 1e13)


def missing_to_compile(device_type: str) -> str | None:
    """Return a short text that says what `torch.compile` needs and this machine lacks; None if it lacks nothing."""
    # Triton, for CUDA, uses gcc or clang; Inductor, for the CPU, uses g++. The variables name another compiler.
    variable, compilers = ("CC", ["gcc", "clang"]) if device_type == "cuda" else ("CXX", ["g++"])
    named = os.environ.get(variable)
    if not any(map(shutil.which, [named] if named else compilers)):
        missing = f"{variable}={named} does not exist" if named else f"{' or '.join(compilers)} is not in PATH"
        return f"torch.compile needs a compiler, and {missing}"
    more = [os.environ.get(name, "") for name in ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH")]
    folders = [sysconfig.get_path("include"), *os.pathsep.join(more).split(os.pathsep)]
    if not any(Path(folder, "Python.h").is_file() for folder in folders):
        return "torch.compile needs Python.h, which is part of python3-dev or a similar package"
    return None


def pays_on_cpu(work: Work, dtype: str, speed: CpuSpeed, threads: int) -> bool:
    """Return whether compiling saves clearly more time than it takes, on so many threads of this speed."""
    flops = (speed.bfloat16 or speed.float32) if dtype == "bfloat16" else speed.float32
    seconds = work.flops / (flops * threads * STEP_EFFICIENCY[dtype])
    return seconds * SAVED_SHARE[dtype] > WORTH * COMPILE_S


def pays_on_every_cpu(work: Work, dtype: str, threads: int) -> bool | None:
    """Return what `pays_on_cpu` returns for every CPU; None if it depends on the CPU."""
    slow, fast = (pays_on_cpu(work, dtype, speed, threads) for speed in (SLOWEST, FASTEST))
    return slow if slow == fast else None


def keep_compiled_code() -> None:
    """Let `torch.compile` keep its code in the cache folder, from which the next run takes it.

    By default it would be in `/tmp`, which is emptied and which other users can write to. Each kind of machine has its
    own folder, since the code is made for the CPU at hand. A user's own TORCHINDUCTOR_CACHE_DIR wins.
    """
    folder = cache_folder()
    if folder is not None:
        compiled = folder / "compiled" / machine_key()
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled))
        if sys.platform == "linux":
            remove_cut_libraries(compiled)


def remove_cut_libraries(folder: Path) -> None:
    """Remove the libraries that are shorter than their header says: their process was killed while it linked them.

    Inductor loads each library that exists, so later runs of the model would fail. A young one may be in the making.
    """
    for path in folder.rglob("*.so"):
        with contextlib.suppress(OSError):  # another run removes it too
            if time.time() - path.stat().st_mtime > LINKING_S and _is_cut(path):
                path.unlink()


def _is_cut(path: Path) -> bool:
    """Return whether a file is no whole library: linkers put the table of an ELF file's sections at its end."""
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or not header.startswith(b"\x7fELF"):
        return True
    (start,), (size, number) = struct.unpack_from("<Q", header, 0x28), struct.unpack_from("<HH", header, 0x3A)
    return path.stat().st_size < int(start + size * number)


def with_cuda_graphs(compiled: Callable[..., Any], model: nn.Module) -> Callable[..., Any]:
    """Return the compiled model such that nothing it has computed is lost when the next micro-batch replays its graph.

    A replay writes to the same memory as before. So the loss is copied, and gradients get memory of their own, to which
    each micro-batch adds.
    """
    for param in model.parameters():
        if param.requires_grad:
            param.grad = torch.zeros_like(param)

    def forward(*inputs: Any, **named: Any) -> tuple[Any, Any]:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        logits, loss = compiled(*inputs, **named)
        return logits, None if loss is None else loss.clone()

    return forward
