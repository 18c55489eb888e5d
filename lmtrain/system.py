"""Device, number format, compilation, threads and memory of a run."""

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
from lmtrain.terminal.units import counted

log = logging.getLogger(__name__)

# mallopt's parameters in glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3

Device = Literal["auto", "cpu", "cuda"] | Annotated[str, StringConstraints(pattern=r"^cuda:\d+$")]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def make_malloc_keep_memory() -> None:
    """Make glibc keep freed memory for the next allocation instead of returning it to the kernel.

    Each training step frees and allocates the same gigabytes. The kernel would map and clear every page again each time
    (140,000 page faults per step for a 50M-parameter model, a tenth of its time on a CPU). With another C library this
    does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in {M_MMAP_THRESHOLD: 1 << 30, M_TRIM_THRESHOLD: (1 << 31) - 1, M_TOP_PAD: 64 << 20}.items():
        mallopt(parameter, value)


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


class System:
    """Sets up the device, dtype and compilation of a run, and hides the differences between CPU and CUDA.

    Args:
        device: `cpu`, `cuda`, or one GPU as `cuda:1`; `auto` means a GPU if there is one.
        dtype: Number format of matrix products; `auto` means bfloat16 on a GPU that supports it, otherwise float32.
            float16 adds a gradient scaler.
        compile: Compile the model with `torch.compile`; `auto` means on a GPU, if this machine has a compiler.
        threads: CPU threads of a step; null means one per core.
        keep_freed_memory: Make glibc keep the memory that a step frees for the next step, which is faster on a CPU.
        tf32: Let a GPU compute float32 matrix products in TensorFloat-32.
        deterministic: Use only algorithms that give the same bits every time. An operation without one raises an error.

    Raises:
        ValueError: the device does not exist, it does not support the dtype, or there is no compiler.
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
                    f"system.device={device}: this machine has {counted(count, 'CUDA device')}; use system.device=auto"
                )
            torch.cuda.set_device(self.device)
        self.dtype_name = self._resolve_dtype(dtype)
        self.dtype: torch.dtype = getattr(torch, self.dtype_name)
        self.compiles = self._resolve_compile(compile)
        # Always set: otherwise MKL chooses the number of threads per product, and the number changes the rounding.
        torch.set_num_threads(threads or torch.get_num_threads())
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            # Not "warn": that leaves attention on CUDA with its faster algorithms, which are not deterministic.
            if self.compiles:
                torch.use_deterministic_algorithms(True)
            else:
                # The same without the compiler's setting, which saves the second that importing the compiler takes.
                torch.set_deterministic_debug_mode("error")
            # Filling memory that is overwritten anyway costs a tenth of a step.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            torch.backends.cudnn.benchmark = False

    def _resolve_compile(self, compile: bool | Literal["auto"]) -> bool:
        wanted = self.device.type == "cuda" if compile == "auto" else compile
        missing = missing_to_compile(self.device.type) if wanted else None
        if missing and compile != "auto":
            raise ValueError(f"system.compile=true: {missing}; install it, or use system.compile=false")
        if missing:
            log.warning(
                "training is slower because the model is not compiled: %s; install it, or use system.compile=false",
                missing,
            )
        return wanted and not missing

    def _resolve_dtype(self, dtype: Dtype) -> str:
        if self.device.type == "cuda":
            has_bfloat16 = torch.cuda.get_device_capability(self.device) >= (8, 0)
            if dtype == "bfloat16" and not has_bfloat16:
                raise ValueError("system.dtype=bfloat16: this GPU has no bfloat16; use float16 or auto")
            return ("bfloat16" if has_bfloat16 else "float32") if dtype == "auto" else dtype
        return "float32" if dtype == "auto" else dtype

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context for a forward pass: mixed precision, or no change for float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Return the scaler that keeps float16 gradients from vanishing; it is disabled for other dtypes."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def compile(self, model: torch.nn.Module) -> Callable[..., Any]:
        """Return the callable to train with. Save the model itself: its parameter names have no `_orig_mod.`."""
        return torch.compile(model) if self.compiles else model

    def seed(self, seed: int) -> None:
        """Seed every random generator that a model or a user's part may use."""
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def synchronize(self) -> None:
        """Wait for the device to finish its work, for example before reading a clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def memory_gb(self) -> float:
        """Return the peak memory in GB (10^9 bytes): of the tensors on a GPU, of the whole process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    def peak_flops(self) -> float | None:
        """Return the vendor's 16-bit FLOP/s of this device; None if unknown, or if the run computes in float32."""
        if self.device.type == "cpu" or self.dtype == torch.float32:
            return None
        gpu = find_gpu(torch.cuda.get_device_name(self.device))
        return gpu.peak_flops if gpu else None

    def process_bytes(self) -> int:
        """Return the bytes of RAM that this process uses now."""
        statm = Path("/proc/self/statm")
        if statm.exists():
            return int(statm.read_text(encoding="utf-8").split()[1]) * resource.getpagesize()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def speed_to_float32(self) -> float:
        """Return the speed of a matrix product in the run's dtype, relative to float32.

        It is below 1 on CPUs that emulate the dtype.
        """
        return 1.0 if self.dtype == torch.float32 else self.measure_flops() / self.measure_flops(torch.float32)

    def measure_flops(self, dtype: torch.dtype | None = None) -> float:
        """Return the FLOP/s of a large matrix product, in the run's dtype by default: the best of three tries.

        It takes about a second.
        """
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
        """Return the state of all random generators as tensors, which can be saved without pickle."""
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
        """Restore a state that `generator_state` returned.

        After a move from CPU to CUDA the state has nothing for the CUDA generator, which then keeps its seed.
        """
        version, *words = state["python"].tolist()
        gauss = state["python_gauss"].tolist()
        random.setstate((version, tuple(words), gauss[0] if gauss else None))
        *key, position, has_gauss = state["numpy"].tolist()
        np.random.set_state(("MT19937", np.array(key, np.uint32), position, has_gauss, state["numpy_gauss"].item()))
        torch.set_rng_state(state["torch"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)
