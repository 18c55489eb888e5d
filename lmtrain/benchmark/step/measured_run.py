"""Builds the parts of a run, measures its steps, and the machine."""

import time
from pathlib import Path

import torch
from omegaconf import DictConfig

from lmtrain.benchmark.step.findings import Findings, StepWork
from lmtrain.benchmark.step.limits import loader_seconds
from lmtrain.benchmark.step.measurement import StepMeasurement
from lmtrain.benchmark.step.trace_summary import read_trace, summarize
from lmtrain.benchmark.step.training import TrainingInTurns, with_random_tokens
from lmtrain.checkpoint.kept_choices import kept_choices
from lmtrain.config.build import raising_config_errors
from lmtrain.hardware.number_format import may_gain
from lmtrain.loop.training_parts import Parts
from lmtrain.parts import build_parts, build_system, check_model_size, work_of
from lmtrain.plan.hardware import memory_beside
from lmtrain.plan.make import NOT_COUNTED, count_flops_per_token, simulated
from lmtrain.plan.memory import StepCost, StepSettings
from lmtrain.system import System


def measure_run(
    cfg: DictConfig,
    folder: Path,
    *,
    has_data: bool,
    started: float,
    seconds: float,
    micro_batches: int | None = None,
    profile_file: Path | None = None,
) -> Findings:
    """Measure the steps of a run.

    Args:
        cfg: The checked config.
        folder: An empty folder for the metrics and the checkpoint of the measured steps.
        has_data: Whether the token files exist; otherwise random tokens are written into the folder.
        started: The `time.perf_counter()` at which the command started.
        seconds: The time for the rounds.
        micro_batches: Micro-batches per measured step; None means the config's, or fewer if the time is short.
        profile_file: Where a trace goes; None for no profile.

    Raises:
        ConfigError: the parts show a mistake when they are built.
    """
    if not has_data:
        cfg = with_random_tokens(cfg, folder / "tokens")
    imported = time.perf_counter() - started
    with raising_config_errors():
        check_model_size(cfg)
        system = build_system(cfg)
    beside = sum(memory_beside(system, 0).values())
    began = time.perf_counter()
    with raising_config_errors():
        # This also chooses the number format and whether to compile.
        parts = build_parts(cfg, system, kept=kept_choices(None, cfg.get("fork")))
        training = TrainingInTurns(cfg, parts, folder)
    built = time.perf_counter() - began
    before = sum(memory_beside(system, 0).values())
    cost, unknown_as = _simulate(cfg, system)
    beside += sum(memory_beside(system, 0).values()) - before  # what the simulation has loaded stays in this process
    no_floor = unknown_as if cost is None else None
    if cost is not None and not cost.micro_batch_calls:
        no_floor = "the step has no matrix products"
    findings = Findings(
        _work(cfg, parts, cost, has_data),
        startup={"imports and config": imported, "model and data": built},
        no_floor=no_floor,
        no_price=None if torch.get_deterministic_debug_mode() else "system.deterministic=false",
    )
    if cost is not None:
        findings.planned_memory = cost.step_bytes
        if system.device.type == "cpu":
            findings.planned_memory += beside + cost.checkpoint_bytes  # of which the saver keeps a copy
    measurement = StepMeasurement(
        findings,
        training,
        system,
        cost.micro_batch_calls if cost is not None and no_floor is None else None,
        seconds=seconds,
        profile_file=profile_file,
        micro_batches=micro_batches,
    )
    training.run(measurement.turns())
    findings.loader, findings.copy = loader_seconds(parts.train_loader)
    if profile_file is not None:
        findings.profile = summarize(read_trace(profile_file))
    return findings


def _simulate(cfg: DictConfig, system: System) -> tuple[StepCost | None, str | None]:
    micro_batches = min(cfg.trainer.get("gradient_accumulation_steps", 1), 2)  # more need no more memory
    sizes = micro_batches, cfg.data.batch_size, cfg.data.block_size
    settings = StepSettings(system.device.type, system.dtype, *sizes, ema_decay=cfg.trainer.get("ema_decay"))
    return simulated(cfg, settings)


def _work(cfg: DictConfig, parts: Parts, cost: StepCost | None, has_data: bool) -> StepWork:
    flops, counted_how = count_flops_per_token(cfg, parts.model)
    return StepWork(
        model=type(parts.model).__name__,
        parameters=sum(param.numel() for param in parts.model.parameters()),
        batch_size=cfg.data.batch_size,
        block_size=cfg.data.block_size,
        accumulation=cfg.trainer.get("gradient_accumulation_steps", 1),
        flops_per_token=None if counted_how == NOT_COUNTED or not flops else flops,
        other_bytes=cost.micro_batch_operations.other_bytes if cost is not None else None,
        log_interval=cfg.trainer.get("log_interval", 1),
        has_real_data=has_data,
        gains_in_16_bits=parts.system.device.type != "cpu" or may_gain(work_of(cfg, parts.model)),
    )
