"""Device, number format, compilation, threads and memory of a run."""

import contextlib
import logging
import os
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import PositiveInt, StringConstraints
from torch import nn

from lmtrain.hardware import compilation, generators, number_format
from lmtrain.hardware.allocators import cuda_allocator_settings, let_cuda_segments_grow, make_malloc_keep_memory
from lmtrain.hardware.compilation import missing_to_compile
from lmtrain.hardware.cpu_speed import cpu_speed
from lmtrain.hardware.float8 import PAYS_FROM, convert_to_float8
from lmtrain.hardware.product_speed import LARGE, fastest_product
from lmtrain.hardware.work import Work
from lmtrain.machine import find_gpu
from lmtrain.terminal.units import counted

log = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda"] | Annotated[str, StringConstraints(pattern=r"^cuda:\d+$")]
Dtype = Literal["auto", "float32", "bfloat16", "float16", "float8"]
# Modes of torch.compile; `default` is the same as true.
Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
DTYPE_KEY, COMPILE_KEY = "system.dtype", "system.compile"


class System:
    """Sets up the device, dtype and compilation of a run, and hides the differences between CPU and CUDA.

    On a CPU, what is best for `dtype` and `compile` depends on the run. There `auto` means float32 and no compilation
    until `choose` is called.

    Args:
        device: `cpu`, `cuda`, or one GPU as `cuda:1`; `auto` means a GPU if there is one.
        dtype: Number format of matrix products. `auto` means bfloat16 where it is faster: on a GPU that supports it,
            and on a CPU with hardware for it if the model is wide enough. float16 adds a gradient scaler. float8 is
            for models from about a billion parameters, on a GPU that has it; it needs torchao and compilation.
        compile: Compile the model with `torch.compile`, or a mode of it; `default` is the same as true. `auto` means on
            a GPU, and on a CPU if the run is long enough to gain from it, if this machine has a compiler.
        threads: CPU threads of a step; null means one per core.
        keep_freed_memory: Make glibc keep the memory that a step frees for the next step, which is faster on a CPU.
        tf32: Let a GPU compute float32 matrix products in TensorFloat-32.
        deterministic: Use only algorithms that give the same bits every time. An operation without one raises an error.

    Raises:
        ValueError: the device does not exist, it does not support the dtype, there is no compiler, or the mode of
            compilation is not deterministic.
    """

    def __init__(
        self,
        device: Device = "auto",
        dtype: Dtype = "auto",
        compile: bool | Literal["auto"] | Mode = "auto",
        threads: PositiveInt | None = None,
        keep_freed_memory: bool = True,
        tf32: bool = True,
        deterministic: bool = True,
    ) -> None:
        if keep_freed_memory:
            make_malloc_keep_memory()
        if device != "cpu":
            let_cuda_segments_grow()
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
        self.automatic = {key for key, value in ((DTYPE_KEY, dtype), (COMPILE_KEY, compile)) if value == "auto"}
        self.deterministic = deterministic
        # Always set: otherwise MKL chooses the number of threads per product, and the number changes the rounding.
        torch.set_num_threads(threads or torch.get_num_threads())
        self._set_dtype(self._usual_dtype() if dtype == "auto" else dtype)
        self._set_compile(self._usual_compile() if compile == "auto" else compile)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            # Filling memory that is overwritten anyway costs a tenth of a step.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            torch.backends.cudnn.benchmark = False

    def _set_dtype(self, dtype: str) -> None:
        if reason := number_format.lacks_hardware(self.device, dtype):
            raise ValueError(f"system.dtype={dtype}: {reason}")
        self.dtype_name = dtype
        self.dtype: torch.dtype = number_format.FORMATS[dtype]  # of autocast

    def _set_compile(self, compile: bool | str) -> None:
        self.compile_mode = None if compile is False else "default" if compile is True else compile
        if compile and (missing := missing_to_compile(self.device.type)):
            raise ValueError(f"{COMPILE_KEY}={_in_yaml(compile)}: {missing}; install it, or use system.compile=false")
        if self.deterministic and compile in compilation.TIMING_MODES:
            raise ValueError(
                f"{COMPILE_KEY}={compile}: chooses the kernels by their time, so that two runs may differ in the last "
                "bits; add system.deterministic=false, or use system.compile=true"
            )
        if self.dtype_name == "float8" and not compile:
            raise ValueError("system.dtype=float8: works only with system.compile=true; use that, or bfloat16")
        if compile:
            compilation.keep_compiled_code()  # before the compiler is imported, which also chooses a folder
        if self.deterministic:
            # Not "warn": that leaves attention on CUDA with its faster algorithms, which are not deterministic.
            if compile:
                torch.use_deterministic_algorithms(True)
            else:
                # The same without the compiler's setting, which saves the second that importing the compiler takes.
                torch.set_deterministic_debug_mode("error")

    def _usual_dtype(self) -> str:
        return number_format.choose_on_cuda(self.device) if self.device.type == "cuda" else "float32"

    def _usual_compile(self) -> bool:
        if self.device.type != "cuda":
            return False
        if missing := missing_to_compile("cuda"):
            log.warning(
                "training is slower because the model is not compiled: %s; install it, or use system.compile=false",
                missing,
            )
        return not missing

    @property
    def compiles(self) -> bool:
        """Whether the model is compiled."""
        return self.compile_mode is not None

    @property
    def uses_cuda_graphs(self) -> bool:
        """Whether a compiled step is replayed as a CUDA graph, which overwrites the tensors that it returned before."""
        return self.device.type == "cuda" and self.compile_mode in compilation.GRAPH_MODES

    @property
    def resolved(self) -> dict[str, Any]:
        """What `auto` became, by config key."""
        values = {DTYPE_KEY: self.dtype_name, COMPILE_KEY: self.compiles}
        return {key: value for key, value in values.items() if key in self.automatic}

    def choose(self, work: Work, kept: Mapping[str, Any]) -> None:
        """Choose what `auto` means for this work. Choices in `kept`, of the run that is continued, are made again."""
        if DTYPE_KEY in self.automatic:
            before = kept.get(DTYPE_KEY)
            self._set_dtype(self._usual_dtype() if before is None else self._kept_dtype(before))
            if before is None and self.device.type == "cpu" and number_format.may_gain(work):
                self._set_dtype(number_format.choose_on_cpu(work, cpu_speed()))
        if COMPILE_KEY in self.automatic:
            self._set_compile(self._chosen_compile(work, kept.get(COMPILE_KEY)))

    def _kept_dtype(self, before: Any) -> str:
        usable = before in number_format.KEPT and not number_format.lacks_hardware(self.device, before)
        if not usable:
            now = self._usual_dtype()
            log.warning("system.dtype=auto was %s, which this machine lacks; the run continues in %s", before, now)
            return now
        if before == "bfloat16" and self.device.type == "cpu" and cpu_speed().bfloat16_gain < 1:
            log.warning(
                "the run continues in bfloat16, as it began, but this CPU is slow in it; to change that: "
                "system.dtype=float32 allow_changes=system.dtype"
            )
        return str(before)

    def _chosen_compile(self, work: Work, before: Any) -> bool:
        if isinstance(before, bool):
            if before and (missing := missing_to_compile(self.device.type)):
                log.warning("the run continues without compilation, unlike before: %s", missing)
                return False
            return before
        if self.device.type == "cuda":
            return self.compiles
        threads = torch.get_num_threads()
        pays = compilation.pays_on_every_cpu(work, self.dtype_name, threads)
        if pays is None:
            pays = compilation.pays_on_cpu(work, self.dtype_name, cpu_speed(), threads)
        missing = missing_to_compile("cpu") if pays else None
        if missing:
            log.info("compiling the model would shorten this run, but %s", missing)
        return pays and not missing

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context for a forward pass: mixed precision, or no change for float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Return the scaler that keeps float16 gradients from vanishing; it is disabled for other dtypes."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def compile(
        self,
        model: nn.Module,
        *,
        fixed_shapes: bool = False,
        wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    ) -> Callable[..., Any]:
        """Return the callable to train with. Save the model itself: its parameter names have no `_orig_mod.`.

        `wrap` prepares the model for several processes, before it is compiled.

        With `fixed_shapes`, each shape of the tokens is compiled by itself. Otherwise the second shape is compiled for
        all further ones, so that the same shape would be computed differently after a resume.
        """
        if not self.compiles:
            return wrap(model)
        if self.dtype_name == "float8":
            layers, count = convert_to_float8(model), sum(param.numel() for param in model.parameters())
            log.info("%s in float8", counted(layers, "layer"))
            if count < PAYS_FROM:
                log.warning(
                    "system.dtype=float8: pays from about a billion parameters, and this model has %s; compare it with "
                    "bfloat16",
                    f"{count:,}",
                )
        compiled = torch.compile(wrap(model), mode=self.compile_mode, dynamic=False if fixed_shapes else None)
        return compilation.with_cuda_graphs(compiled, model) if self.uses_cuda_graphs else compiled

    def zero_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Set all gradients to zero for the next step, by freeing them unless they have to stay at their place."""
        optimizer.zero_grad(set_to_none=not self.uses_cuda_graphs)

    def allocator(self) -> str | None:
        """Return the settings of torch's allocator for this GPU; None on a CPU."""
        return cuda_allocator_settings() if self.device.type == "cuda" else None

    def seed(self, seed: int) -> None:
        """Seed every random generator that a model or a user's part may use."""
        generators.seed_generators(seed)

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
        """Return the FLOP/s of large matrix products at their best, in the run's dtype by default.

        It takes about a second at most.
        """
        return fastest_product(LARGE[self.device.type], dtype or self.dtype, self.device, self.synchronize)

    def describe(self) -> str:
        """Return device, number format and compilation in words, which `compare` reads again."""
        compiled = {None: "eager", "default": "compiled"}.get(self.compile_mode, f"compiled {self.compile_mode}")
        name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"{torch.get_num_threads()} threads"
        )
        return f"{self.device} ({name}), {self.dtype_name}, {compiled}"

    def generator_state(self) -> dict[str, torch.Tensor]:
        """Return the state of all random generators as tensors, which can be saved without pickle."""
        return generators.generator_state(self.device)

    def load_generator_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore a state that `generator_state` returned."""
        generators.load_generator_state(self.device, state)


def _in_yaml(value: bool | str) -> str:
    return str(value).lower() if isinstance(value, bool) else value
