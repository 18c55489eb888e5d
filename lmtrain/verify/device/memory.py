"""Checks the memory that `plan` predicts for a step against the memory that a step needs."""

import gc
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from lmtrain.plan.make import planned_parts, simulate_step
from lmtrain.trainer import Trainer
from lmtrain.verify.device.finding import Finding, judged
from lmtrain.verify.device.setting import Setting, fed

ALLOWED = 0.10
CUDA_SIZES = {  # as large as a small card allows; the memory of larger ones follows the same rules
    "llama": ("model=llama_50m", "data.batch_size=8", "data.block_size=512"),
    "gpt2": ("model=gpt2", "model.vocab_size=32000", "data.batch_size=4", "data.block_size=1024"),
}
CPU_SIZES = {
    "llama": (
        *("model=llama_10m", "model.vocab_size=8192", "data.batch_size=4", "data.block_size=128"),
        *("model.n_layer=4",),
    )
}


def planned_and_measured(setting: Setting) -> Iterator[Finding]:
    for name, sizes in (CUDA_SIZES if setting.is_cuda else CPU_SIZES).items():
        cfg = setting.config(*sizes, "trainer.gradient_accumulation_steps=2", "system.compile=false", vocabulary=8192)
        yield compare(planned_bytes(cfg), measured_bytes(setting, cfg), name)


def compare(planned: int, measured: int, what: str) -> Finding:
    ratio = planned / measured
    return judged(
        abs(ratio - 1) <= ALLOWED,
        f"planned {planned / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB ({ratio - 1:+.0%}; allowed ±{ALLOWED:.0%})",
        what,
        planned_bytes=planned,
        measured_bytes=measured,
    )


def planned_bytes(cfg: Any) -> int:
    """Return the peak that `plan` predicts.

    Raises:
        RuntimeError: it cannot simulate the step.
    """
    work = simulate_step(cfg, planned_parts(cfg, []))
    if work.here is None:
        raise RuntimeError(f"the memory is unknown, because {work.unknown_as}")
    return work.here.step_bytes


def measured_bytes(setting: Setting, cfg: Any) -> int:
    """Return the peak memory of the tensors of a step, after earlier steps."""
    gc.collect()
    if not setting.is_cuda:
        with fed(setting.trainer(cfg)) as trainer:
            trainer.step()
            return peak_on_the_cpu(trainer)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(setting.device)
    with fed(setting.trainer(cfg)) as trainer:
        trainer.step()
        torch.cuda.reset_peak_memory_stats(setting.device)
        trainer.step()
        torch.cuda.synchronize(setting.device)
        return torch.cuda.max_memory_allocated(setting.device) - before


def peak_on_the_cpu(trainer: Trainer) -> int:
    """Return the peak memory of the tensors of the next step, from the profiler, which sees every allocation."""
    model, states = trainer.model, trainer.optimizer.state.values()
    held = [*model.parameters(), *model.buffers(), *(value for state in states for value in state.values())]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        trainer.step()
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profiled.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held_bytes = sum(tensor.nbytes for tensor in held)
    return int(held_bytes + max(accumulate(change for _, change in sorted(changes))))
