"""The machine as the run uses it: device, number format, compilation, threads, memory."""

import contextlib
import ctypes
import logging
import os
import platform
import random
import resource
import shutil
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from pydantic import PositiveInt, StringConstraints

from lmtrain.machine import find_gpu

log = logging.getLogger(__name__)

# mallopt's parameters in glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3

Device = Literal["auto", "cpu", "cuda"] | Annotated[str, StringConstraints(pattern=r"^cuda:\d+$")]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def make_malloc_keep_memory() -> None:
    """Make glibc keep freed memory for the next allocation, rather than hand it back to the kernel.

    A training step frees and asks again for the same gigabytes; each time the kernel would map and clear every page
    anew (140,000 page faults a step for a 50M-parameter model, a tenth of its time on a CPU). Where the C
    library is another one, nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in {M_MMAP_THRESHOLD: 1 << 30, M_TRIM_THRESHOLD: (1 << 31) - 1, M_TOP_PAD: 64 << 20}.items():
        mallopt(parameter, value)


def missing_to_compile(device_type: str) -> str | None:
    """Return what this machine lacks for `torch.compile`, in a few words; None if it lacks nothing."""
    # Triton, for CUDA, takes gcc or clang; Inductor, for the CPU, g++. The variables name another.
    variable, compilers = ("CC", ["gcc", "clang"]) if device_type == "cuda" else ("CXX", ["g++"])
    named = os.environ.get(variable)
    if not any(map(shutil.which, [named] if named else compilers)):
        missing = f"{variable}={named} is not there" if named else f"{' or '.join(compilers)} is not in PATH"
        return f"torch.compile needs a compiler, and {missing}"
    more = [os.environ.get(name, "") for name in ("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH")]
    folders = [sysconfig.get_path("include"), *os.pathsep.join(more).split(os.pathsep)]
    if not any(Path(folder, "Python.h").is_file() for folder in folders):
        return "torch.compile needs Python.h, of the package python3-dev or similar"
    return None


class System:
    """Device, dtype and compilation of a run, and everything that differs between CPU and CUDA.

    `auto` picks cuda where there is one; bfloat16 on a GPU that has it, else float32; compilation on cuda, if this
    machine can. `threads` limits the CPU threads of a step (null: one a core). `keep_freed_memory` is glibc's, for
    training on the CPU. `tf32` lets a GPU multiply float32 in TensorFloat-32; `deterministic` takes the algorithms that
    give the same bits every time; an operation that has none fails then.

    Raises:
        ValueError: a device that is not there, a dtype that it cannot compute in, no compiler to compile with.
    """

    def __init__(
        self,
        device: Device = "auto",
        dtype: Dtype = "auto",
        compile: bool | Literal["auto"] = "auto",
        threads: PositiveInt | None = None,
        keep_freed_memory: bool = True,
        tf32: bool = True,
        deterministic: bool = True,
    ) -> None:
        if keep_freed_memory:
            make_malloc_keep_memory()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        if self.device.type == "cuda":
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if (self.device.index or 0) >= count:
                raise ValueError(
                    f"system.device={device}: this machine has {count} CUDA devices; take system.device=auto"
                )
            torch.cuda.set_device(self.device)
        self.dtype_name = self._resolve_dtype(dtype)
        self.dtype: torch.dtype = getattr(torch, self.dtype_name)
        self.compiles = self._resolve_compile(compile)
        # Always: MKL otherwise chooses the number of threads of each product, and another number rounds otherwise.
        torch.set_num_threads(threads or torch.get_num_threads())
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            # Not "warn": with that, attention on CUDA keeps its faster algorithms, which are not deterministic.
            if self.compiles:
                torch.use_deterministic_algorithms(True)
            else:
                # The same, but for the compiler's own setting, and so without a second for importing the compiler.
                torch.set_deterministic_debug_mode("error")
            # The filling of memory that is written anyway costs a tenth of a step.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            torch.backends.cudnn.benchmark = False

    def _resolve_compile(self, compile: bool | Literal["auto"]) -> bool:
        wanted = self.device.type == "cuda" if compile == "auto" else compile
        missing = missing_to_compile(self.device.type) if wanted else None
        if missing and compile != "auto":
            raise ValueError(f"system.compile=true: {missing}; install that, or take system.compile=false")
        if missing:
            log.warning("the model is not compiled, which is slower: %s; or say system.compile=false", missing)
        return wanted and not missing

    def _resolve_dtype(self, dtype: Dtype) -> str:
        if self.device.type == "cuda":
            has_bfloat16 = torch.cuda.get_device_capability(self.device) >= (8, 0)
            if dtype == "bfloat16" and not has_bfloat16:
                raise ValueError("system.dtype=bfloat16: this GPU has no bfloat16; take float16 or auto")
            return ("bfloat16" if has_bfloat16 else "float32") if dtype == "auto" else dtype
        return "float32" if dtype == "auto" else dtype

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of one forward pass: mixed precision, or nothing for float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Return what scales the loss so that float16 gradients do not vanish; it does nothing for other dtypes."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def compile(self, model: torch.nn.Module) -> Callable[..., Any]:
        """Return the callable to train with; the model itself is still what is saved, without any `_orig_mod.`."""
        return torch.compile(model) if self.compiles else model

    def seed(self, seed: int) -> None:
        """Seed every generator that a model or a user's part may draw from."""
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def synchronize(self) -> None:
        """Wait for the device, so that a clock is right."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def memory_gb(self) -> float:
        """Return the peak memory in GB (10^9 bytes): the tensors' on a GPU, the whole process's on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    def peak_flops(self) -> float | None:
        """Return the vendor's FLOP/s of this device in 16 bits; None if unknown, or if the run computes in 32."""
        if self.device.type == "cpu" or self.dtype == torch.float32:
            return None
        gpu = find_gpu(torch.cuda.get_device_name(self.device))
        return gpu.peak_flops if gpu else None

    def process_bytes(self) -> int:
        """Return the bytes of RAM that this process holds now."""
        statm = Path("/proc/self/statm")
        if statm.exists():
            return int(statm.read_text(encoding="utf-8").split()[1]) * resource.getpagesize()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def speed_to_float32(self) -> float:
        """Return the speed of a matrix product in the run's dtype over float32's; below 1 on CPUs that emulate it."""
        return 1.0 if self.dtype == torch.float32 else self.measure_flops() / self.measure_flops(torch.float32)

    def measure_flops(self, dtype: torch.dtype | None = None) -> float:
        """Return the FLOP/s of a large matrix product, in the run's dtype by default: best of three, in a second."""
        n = 8192 if self.device.type == "cuda" else 1024
        a = torch.ones(n, n, device=self.device, dtype=dtype or self.dtype)
        seconds = []
        for _ in range(3):
            self.synchronize()
            started = time.perf_counter()
            a @ a
            self.synchronize()
            seconds.append(time.perf_counter() - started)
        return 2 * n**3 / min(seconds)

    def describe(self) -> str:
        name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"{torch.get_num_threads()} threads"
        )
        return f"{self.device} ({name}), {self.dtype_name}, {'compiled' if self.compiles else 'eager'}"

    def generator_state(self) -> dict[str, torch.Tensor]:
        """Return the state of all random generators, as tensors that a file without pickle can hold."""
        version, words, gauss = random.getstate()
        _, key, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state(legacy=True))
        state = {
            "python": torch.tensor([version, *words], dtype=torch.int64),
            "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
            "numpy": torch.tensor([*key.tolist(), position, has_gauss], dtype=torch.int64),
            "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
            "torch": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_generator_state(self, state: dict[str, torch.Tensor]) -> None:
        """Put back what `generator_state` gave; a run that moved from CPU to CUDA seeds the latter anew."""
        version, *words = state["python"].tolist()
        gauss = state["python_gauss"].tolist()
        random.setstate((version, tuple(words), gauss[0] if gauss else None))
        *key, position, has_gauss = state["numpy"].tolist()
        np.random.set_state(("MT19937", np.array(key, np.uint32), position, has_gauss, state["numpy_gauss"].item()))
        torch.set_rng_state(state["torch"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)
