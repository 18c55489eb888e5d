"""Measures the time and memory of a few real optimizer steps, for `plan --measure`."""

import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lmtrain.data.prefetch import Prefetcher
from lmtrain.parts import build_parts, build_scratch_trainer
from lmtrain.plan.plan import Measured
from lmtrain.system import System

STEPS = 5  # at most, after a first step that is not counted, because it allocates and compiles
ENOUGH_S = 20.0


def measure(cfg: DictConfig, system: System) -> Measured:
    """Measure the trainer's real steps on the run's data; no files are left behind.

    The system has already chosen what `auto` means, and keeps that.
    """
    seconds, peak_bytes = timed_steps(cfg, system, STEPS, ENOUGH_S, kept=system.resolved)
    return Measured(statistics.median(seconds), len(seconds), peak_bytes)


def timed_steps(
    cfg: DictConfig,
    system: System,
    most: int,
    enough_s: float,
    *,
    kept: Mapping[str, Any] | None = None,
    choose_for: DictConfig | None = None,
) -> tuple[list[float], int]:
    """Return the seconds of at most `most` steps, but no more after `enough_s` seconds, and the peak memory in bytes.

    An additional first step is not timed. For `kept` and `choose_for`, see `build_parts`.
    """
    parts = build_parts(cfg, system, kept=kept, choose_for=choose_for)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_scratch_trainer(cfg, parts, Path(folder))
        seconds: list[float] = []
        with Prefetcher(parts.train_loader.batch, 0, system.device) as trainer.micro_batches:
            trainer.step()
            while len(seconds) < most and sum(seconds) < enough_s:
                system.synchronize()
                started = time.perf_counter()
                trainer.step()
                system.synchronize()
                seconds.append(time.perf_counter() - started)
        return seconds, round(system.memory_gb() * 1e9)
