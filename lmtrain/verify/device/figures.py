"""Measures training at real sizes: tokens/s, MFU and memory, beside a plain compiled loop on the same device."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmtrain.machine import find_gpu
from lmtrain.model.flops import flops_per_token
from lmtrain.system import System
from lmtrain.terminal.units import si
from lmtrain.trainer import Trainer
from lmtrain.verify.device.finding import MEASURED, NOT_APPLICABLE, NOT_RUN, Finding
from lmtrain.verify.device.overlap import waiting_is_an_error
from lmtrain.verify.device.plain_loop import PlainSizes, plain_step
from lmtrain.verify.device.setting import Setting, fed

WARM_UP = 3  # steps that compile and allocate
ROUNDS, ROUND_S = 5, 1.0
LONG_RUN = 100_000
SHORT_RUN = 600  # steps, as in quickstart: for a long run, a CPU would first compile for minutes
SMALL_CARD = 40e9  # bytes; on cards with less, micro-batches are a quarter as large
GOALS_FOR = ("H100", "H200")  # the GPUs for which the goals are meant


@dataclass(frozen=True)
class Goal:
    """A goal for one of the measured values: at least `value`, or at most, if it is a time."""

    key: str
    value: float
    text: str

    def verdict(self, values: dict[str, Any]) -> str:
        found = values.get(self.key)
        if found is None:
            return ""
        reached = found <= self.value if self.key.endswith("_ms") else found >= self.value
        return f"; goal {self.text}: {'reached' if reached else 'MISSED'}"


@dataclass(frozen=True)
class Figure:
    """A model and its sizes: sequences per micro-batch, tokens per sequence, micro-batches per step."""

    name: str
    model: tuple[str, ...]
    sizes: tuple[int, int, int]
    goal: Goal | None = None


GPT2 = ("model=gpt2", "model.vocab_size=50304", "model.block_size=1024", "model.bias=false")
LLAMA = ("model=llama_50m", "model.vocab_size=32000")
FIGURES = {
    "gpt2": Figure("gpt2 124M", GPT2, (32, 1024, 4), Goal("tokens_per_second", 580e3, "≥ 580,000 tokens/s")),
    "production": Figure("production, llama_50m", LLAMA, (16, 512, 4), Goal("step_ms", 20.0, "≤ 20 ms a step")),
    "llama_350m": Figure(
        "Llama 350M",
        (*LLAMA, "model.n_layer=24", "model.n_head=16", "model.d_model=1024", "model.d_ff=2816"),
        (16, 1024, 2),
    ),
    "llama_1b": Figure(
        "Llama 1B",
        (*LLAMA, "model.n_layer=16", "model.n_head=16", "model.d_model=2048", "model.d_ff=8192"),
        (4, 2048, 2),
        Goal("mfu", 0.55, "≥ 55% MFU"),
    ),
}
# As large as `experiments=quickstart`.
ON_A_CPU = Figure("quickstart, llama_1m", ("model=llama_1m", "model.vocab_size=4096"), (8, 128, 1))


def gpt2(setting: Setting) -> Iterator[Finding]:
    """Measure gpt2 with the fastest kernels; on a CPU, which is too slow for the figures, a small model."""
    if not setting.is_cuda:
        yield from measure(setting, ON_A_CPU)
        return
    yield from measure(setting, FIGURES["gpt2"], "system.deterministic=false")


def production(setting: Setting) -> Iterator[Finding]:
    yield from on_cuda(setting, "production")


def llama_350m(setting: Setting) -> Iterator[Finding]:
    yield from on_cuda(setting, "llama_350m")


def llama_1b(setting: Setting) -> Iterator[Finding]:
    yield from on_cuda(setting, "llama_1b")


def gpt2_deterministic(setting: Setting) -> Iterator[Finding]:
    """Measure gpt2 once more with the default, so that the price of system.deterministic=true can be seen."""
    yield from on_cuda(setting, "gpt2", "system.deterministic=true", beside_plain=False)


def on_cuda(setting: Setting, name: str, *overrides: str, beside_plain: bool = True) -> Iterator[Finding]:
    figure = FIGURES[name]
    what = ", ".join([figure.name, *overrides])
    if not setting.is_cuda:
        yield Finding(NOT_APPLICABLE, "it takes too long on a CPU", what)
        return
    yield from measure(setting, figure, *overrides, beside_plain=beside_plain)


def measure(setting: Setting, figure: Figure, *overrides: str, beside_plain: bool = True) -> Iterator[Finding]:
    """Measure the trainer, and then the plain loop of the same model and batch."""
    batch_size, block_size, micro_batches = figure.sizes
    if setting.is_cuda and torch.cuda.get_device_properties(setting.device).total_memory < SMALL_CARD:
        batch_size, micro_batches = max(1, batch_size // 4), 4 * micro_batches
    sizes = (
        f"data.batch_size={batch_size}",
        f"data.block_size={block_size}",
        f"trainer.gradient_accumulation_steps={micro_batches}",
        f"trainer.max_steps={LONG_RUN if setting.is_cuda else SHORT_RUN}",
    )
    vocabulary = int(next(text for text in figure.model if "vocab_size" in text).partition("=")[2])
    cfg = setting.config(*figure.model, *sizes, *overrides, vocabulary=vocabulary)
    what = ", ".join([figure.name, f"{batch_size} × {block_size} × {micro_batches}", *overrides])
    tokens = batch_size * block_size * micro_batches
    ours, system, flops = speed_of_trainer(setting, cfg, tokens)
    forget()
    goal = figure.goal.verdict(ours) if figure.goal and has_goals(system) else ""
    waiting = "; the step WAITS for the device" if ours["waits"] else ""
    yield Finding(MEASURED, f"{in_words(ours)}{waiting}{goal}", what, ours)
    if not beside_plain:
        return
    what = f"{what}: plain loop"
    if time.monotonic() > setting.deadline - ours["first_steps_s"] - 2 * ROUNDS * ROUND_S:
        yield Finding(NOT_RUN, "no time was left for it; see --budget", what)
        return
    train_file = Path(cfg.data.path) / "train.bin"
    step, parameters = plain_step(plain_sizes(cfg), train_file, batch_size, micro_batches, system)
    plain = speed(step, system, tokens, flops)
    plain |= {"parameters": parameters, "ours_over_plain": plain["step_ms"] / ours["step_ms"]}
    yield Finding(MEASURED, f"{in_words(plain)}; lmtrain is {plain['ours_over_plain']:.2f} times as fast", what, plain)
    del step
    forget()


def speed_of_trainer(setting: Setting, cfg: Any, tokens: int) -> tuple[dict[str, Any], System, float]:
    """Return what `speed` measures of the trainer's step, the system, and the FLOPs per token."""
    with fed(setting.trainer(cfg)) as trainer:
        system, flops = trainer.system, flops_per_token(trainer.model, cfg.data.block_size)
        values = speed(lambda: step_and_watch(trainer), system, tokens, flops)
        values |= {
            "parameters": sum(param.numel() for param in trainer.model.parameters()),
            "waits": waits(trainer),
            "system": system.describe(),
        }
        return values, system, flops


def forget() -> None:
    """Free the memory of a model that is no longer needed, and what was compiled for it."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def step_and_watch(trainer: Trainer) -> None:
    """Do what `fit` does in a step that neither evaluates nor logs nor saves."""
    trainer.step()
    for bad in trainer.monitor.bad_steps(newest=False):
        raise RuntimeError(str(bad))


def waits(trainer: Trainer) -> bool:
    """Return whether a step makes the host wait for the device."""
    try:
        with waiting_is_an_error(trainer.system.device):
            trainer.step()
    except RuntimeError:
        return True
    return False


def speed(step: Callable[[], None], system: System, tokens: int, flops: float) -> dict[str, Any]:
    """Measure a step: the median of several rounds, each so many steps that it takes about a second."""
    started = time.perf_counter()
    for _ in range(WARM_UP):
        step()
    system.synchronize()
    first_steps_s = time.perf_counter() - started
    if system.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(system.device)
    steps = max(1, round(ROUND_S / seconds_of(step, 2, system)))
    seconds = [seconds_of(step, steps, system) for _ in range(ROUNDS)]
    median, peak = statistics.median(seconds), system.peak_flops()
    return {
        "tokens_per_second": tokens / median,
        "step_ms": 1000 * median,
        "mfu": flops * tokens / median / peak if peak else None,
        "memory_gb": system.memory_gb() if system.device.type == "cuda" else None,
        "first_steps_s": first_steps_s,
        "rounds_ms": [1000 * each for each in seconds],
    }


def seconds_of(step: Callable[[], None], steps: int, system: System) -> float:
    """Return the seconds per step of so many steps."""
    system.synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    system.synchronize()
    return (time.perf_counter() - started) / steps


def plain_sizes(cfg: Any) -> PlainSizes:
    model = cfg.model
    return PlainSizes(
        is_llama="rope_base" in model,
        vocab_size=model.vocab_size,
        block_size=cfg.data.block_size,
        n_layer=model.n_layer,
        n_head=model.n_head,
        d_model=model.d_model,
        d_ff=model.d_ff or 4 * model.d_model,
        bias=bool(model.get("bias")),
    )


def has_goals(system: System) -> bool:
    gpu = find_gpu(torch.cuda.get_device_name(system.device)) if system.device.type == "cuda" else None
    return gpu is not None and gpu.name in GOALS_FOR


def in_words(values: dict[str, Any]) -> str:
    parts = [f"{si(values['tokens_per_second'])} tokens/s", f"{values['step_ms']:.3g} ms a step"]
    if values["mfu"] is not None:
        parts.append(f"{values['mfu']:.1%} MFU")
    if values["memory_gb"] is not None:
        parts.append(f"{values['memory_gb']:.1f} GB")
    return ", ".join(parts)
