"""Makes a plan of a run: it builds the parts without allocating their memory and simulates a step."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from lmtrain.checkpoint.kept_choices import kept_choices
from lmtrain.checkpoint.snapshot import TrainState
from lmtrain.config.batch_size import batch_sizes, for_processes
from lmtrain.config.build import build, raising_config_errors
from lmtrain.data.loader import TokenLoader
from lmtrain.model.flops import count_flops, flops_per_token, recomputed_flops_per_token
from lmtrain.optimizer.group_table import GroupRow
from lmtrain.parts import build_loaders, build_model, build_optimizer, build_system, check_attention, work_of
from lmtrain.plan import hardware, parameters, schedule_picture
from lmtrain.plan.facts import Intervals, RunFacts, ScheduleFacts, checkpoints_kept, start_of
from lmtrain.plan.hardware import estimate_seconds
from lmtrain.plan.measure import measure
from lmtrain.plan.memory import CUDA_CONTEXT, StepCost, StepSettings, simulate
from lmtrain.plan.plan import Measured, Plan
from lmtrain.plan.remarks import remarks
from lmtrain.plan.world.links import Links
from lmtrain.plan.world.make import world_of
from lmtrain.plan.world.processes import Processes
from lmtrain.system import System

NOT_COUNTED = "6 per parameter"  # an estimate of the FLOPs per token, if they can't be counted


@dataclass(frozen=True)
class PlannedParts:
    """The parts of a planned run; the model has no memory, and the loaders are None if the data is not prepared yet."""

    system: System
    model: nn.Module
    schedule: Callable[[int], float]
    train_loader: TokenLoader | None
    val_loader: TokenLoader | None
    start: TrainState  # zeros unless the run is a fork
    groups: Sequence[GroupRow] | None  # None if the optimizer cannot be built without data


@dataclass(frozen=True)
class Work:
    """The cost of a step on this machine, and on a CUDA device in 16 bits; None if it cannot be simulated."""

    here: StepCost | None
    on_cuda: StepCost | None
    unknown_as: str | None  # the reason why `here` is None, after "because"
    flops_per_token: float
    flops_from: str  # how the FLOPs were counted, in words


class Once:
    """A cache that the plans of one command share, so that the same step of several jobs is simulated once."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def get(self, key: object, compute: Callable[[], Any]) -> Any:
        """Return the value of a key; `compute` is called at the first request for it."""
        text = json.dumps(key, default=str)
        if text not in self._values:
            self._values[text] = compute()
        return self._values[text]


def make(
    cfg: Any,
    run_dir: Path,
    missing: Sequence[str],
    *,
    measures: bool = False,
    mfu: float | None = None,
    price: float | None = None,
    links: Links | None = None,
    once: Once | None = None,
) -> Plan:
    """Make the plan of a run.

    `missing` is the data without token files; `measures` runs a few real steps. `mfu` (a share of a GPU's peak speed)
    and `price` (dollars per hour of a GPU) replace the plan's own estimates. `links` are those between the processes.

    Raises:
        ConfigError: the parts show a mistake when they are built.
    """
    processes = Processes.of(cfg)
    size = processes.size if processes else 1
    with raising_config_errors():
        cfg = for_processes(cfg, size)
        parts = planned_parts(cfg, missing)
    once = once or Once()
    key = ["work", parts.system.describe(), _step_settings(cfg, size), size > 1]
    work: Work = once.get(key, lambda: simulate_step(cfg, parts, size))
    measured = measure(cfg, parts.system) if measures else None
    facts = facts_of(cfg, run_dir, parts, work, measured, once)
    world = None
    if processes:
        facts = replace(facts, step_seconds=None, memory_needed=None, memory_free=None)
        with raising_config_errors():
            world = world_of(
                cfg,
                processes,
                links or Links(),
                parts.model,
                work.on_cuda,
                facts,
                work.flops_per_token * facts.tokens,
                no_memory=work.unknown_as,
                mfu=mfu,
                price=price,
            )
    steps, rates = schedule_picture.sample_rates(parts.schedule, facts.max_steps, facts.first_step)
    return Plan(
        name=str(cfg.name),
        fork=cfg.get("fork"),
        machine=parts.system.describe(),
        model=type(parts.model).__name__,
        parts=parameters.parameters_by_part(parts.model, facts.vocab_size),
        groups=parts.groups,
        facts=facts,
        flops_per_token=work.flops_per_token,
        flops_from=work.flops_from,
        here=work.here,
        on_cuda=work.on_cuda,
        beside=hardware.memory_beside(parts.system, facts.checkpoint_bytes),
        no_memory=work.unknown_as,
        missing=missing,
        has_recipe=cfg.get("prepare") is not None,
        measured=measured,
        dollars_per_hour=hardware.price_here(parts.system) if price is None else price,
        checkpoints=checkpoints_kept(cfg.trainer, facts),
        steps=steps,
        rates=rates,
        gpu_estimates=[]
        if world
        else hardware.gpu_estimates(
            hardware.Workload(
                work.flops_per_token * facts.tokens,
                facts.steps,
                facts.mean_step_tokens / facts.micro_batch_tokens,
                work.on_cuda,
            ),
            work.on_cuda.peak_bytes + CUDA_CONTEXT if work.on_cuda else None,
            mfu=mfu,
            dollars_per_hour=price,
        ),
        mfu=mfu,
        remarks=[*remarks(facts), *(world.remarks if world else ())],
        world=world,
    )


def planned_parts(cfg: Any, missing: Sequence[str]) -> PlannedParts:
    """Build the parts that need neither memory nor missing data.

    Raises:
        ValueError: a part refuses its settings; ConfigError, if the config is wrong.
    """
    system = build_system(cfg)
    model = _without_memory(cfg)
    system.choose(work_of(cfg, model), kept_choices(None, cfg.get("fork")))
    train_loader, val_loader = (None, None) if missing else build_loaders(cfg)
    own = dict(model.named_parameters())
    schedule, groups = build(cfg.scheduler), parameters.groups_of(lambda: build_optimizer(cfg, own), model)
    return PlannedParts(system, model, schedule, train_loader, val_loader, start_of(cfg), groups)


def simulate_step(cfg: Any, parts: PlannedParts, processes: int = 1) -> Work:
    """Find the memory and FLOPs of a step without running it; for several processes, of the share of one on CUDA."""
    device, dtype = parts.system.device.type, parts.system.dtype
    micro_batches = _micro_batches(cfg, processes)
    settings = StepSettings(
        device, dtype, micro_batches, cfg.data.batch_size, cfg.data.block_size, ema_decay=cfg.trainer.get("ema_decay")
    )
    if processes > 1:
        on_cuda, unknown_as = simulated(cfg, replace(settings, device="cuda", dtype=torch.bfloat16))
        return Work(None, on_cuda, unknown_as, *count_flops_per_token(cfg, parts.model))
    here, unknown_as = simulated(cfg, settings)
    try:
        check_attention(parts.model, parts.system)
    except ValueError as error:
        unknown_as = f"this machine refuses the run ({error})"
    on_cuda = here
    if (device, dtype.itemsize) != ("cuda", 2):
        on_cuda, _ = simulated(cfg, replace(settings, device="cuda", dtype=torch.bfloat16))
    return Work(here, on_cuda, unknown_as, *count_flops_per_token(cfg, parts.model))


def facts_of(
    cfg: Any, run_dir: Path, parts: PlannedParts, work: Work, measured: Measured | None, once: Once
) -> RunFacts:
    """Return everything that is known about the run."""
    trainer, system, start = cfg.trainer, parts.system, parts.start
    device, batch_size, block_size = system.device.type, cfg.data.batch_size, cfg.data.block_size
    sizes, steps = batch_sizes(cfg), trainer.max_steps - start.step
    tokens = sizes.tokens(steps, start.tokens)
    own_epochs = parts.train_loader.epochs(tokens // block_size) if parts.train_loader else {}
    estimated = (
        (work.flops_per_token + recomputed_flops_per_token(parts.model, block_size))
        * (tokens / steps)
        * once.get(["seconds per FLOP", system.describe()], lambda: estimate_seconds(1.0, system))
        if work.flops_per_token
        else None
    )
    count = sum(param.numel() for param in parts.model.parameters())
    # If the step cannot be simulated, assume float32 weights and AdamW's two moments.
    checkpoint_bytes = step.checkpoint_bytes if (step := work.here or work.on_cuda) else 3 * 4 * count
    peak = work.here.peak_bytes if work.here else None
    if measured and device == "cuda":
        peak = max(measured.peak_bytes, work.here.evaluation_bytes if work.here else 0)
    facts = RunFacts(
        schedule=ScheduleFacts.of(cfg, start.step),
        intervals=Intervals.of(trainer, batch_size * block_size),
        parameters=count,
        step_tokens=sizes.at(start.tokens) * block_size,
        micro_batch_tokens=batch_size * block_size,
        block_size=block_size,
        device=device,
        dtype=system.dtype_name,
        tokens_before=start.tokens,
        epochs=dict(parts.train_loader.epochs(start.samples + tokens // block_size)) if parts.train_loader else {},
        steps_per_epoch=steps / most if (most := max(own_epochs.values(), default=0)) else None,
        val_tokens=parts.val_loader.total_tokens if parts.val_loader else None,
        step_seconds=measured.step_seconds * tokens / steps / (sizes.at(0) * block_size) if measured else estimated,
        checkpoint_bytes=checkpoint_bytes,
        disk_free=hardware.disk_free(run_dir),
        memory_needed=None if peak is None else peak + sum(hardware.memory_beside(system, checkpoint_bytes).values()),
        memory_free=torch.cuda.mem_get_info(system.device)[1] if device == "cuda" else hardware.memory_available(),
        activations=work.here.peak.get("activations") if work.here else None,
        recompute=cfg.model.get("recompute"),
        batch_size=batch_size,
        vocab_size=step.logits_shape[-1] if step else cfg.model.get("vocab_size"),
        d_model=cfg.model.get("d_model"),
        n_head=cfg.model.get("n_head"),
        model_block_size=getattr(parts.model, "block_size", None),
        learned_positions=parameters.has_learned_positions(parts.model),
        speed_to_float32=(once.get(["speed", system.describe()], system.speed_to_float32) if device == "cpu" else None),
        idle_gpu=device == "cpu" and torch.cuda.is_available(),
        batch_sizes=sizes,
    )
    return replace(facts, disk_needed=checkpoints_kept(trainer, facts) * checkpoint_bytes)


def _step_settings(cfg: Any, processes: int) -> Any:
    """Return the settings on which a step's memory and time depend; numbers such as the learning rate are left out."""
    plain: Any = OmegaConf.to_container(cfg)
    optimizer = {key: value for key, value in plain["optimizer"].items() if not _is_rate(value)}
    return [plain["model"], plain["data"], optimizer, _micro_batches(cfg, processes), plain["trainer"].get("ema_decay")]


def _is_rate(value: Any) -> bool:
    return all(isinstance(item, float) for item in (value if isinstance(value, list) else [value]))


def _micro_batches(cfg: Any, processes: int) -> int:
    """Return how many micro-batches of a process to simulate: a third one adds no memory."""
    most = batch_sizes(cfg).range(cfg.trainer.max_steps)[1] // (cfg.data.batch_size * cfg.data.block_size)
    return min(int(most) // processes, 2)


def _without_memory(cfg: Any) -> Any:
    """Build the model without memory for its weights, or with it if that is impossible."""
    try:
        with torch.device("meta"):
            return build_model(cfg)
    except (RuntimeError, NotImplementedError):  # the model reads its weights while it is built
        return build_model(cfg)


def simulated(cfg: Any, settings: Any) -> tuple[StepCost | None, str | None]:
    """Return the cost of a step, or the reason why it cannot be simulated."""

    def parts() -> Any:
        model = build_model(cfg)
        return model, build_optimizer(cfg, dict(model.named_parameters()))

    try:
        return simulate(parts, settings), None
    except Exception as error:  # a user's model or optimizer may need real data, and raise anything without it
        first = str(error).strip().partition("\n")[0]
        return None, f"a step cannot be simulated without data ({type(error).__name__}: {first})"


def count_flops_per_token(cfg: Any, model: Any) -> tuple[float, str]:
    """Return the FLOPs of forward and backward per token, and in words how they were counted."""
    if hasattr(model, "flops_per_token"):
        return flops_per_token(model, cfg.data.block_size), "the model's own count"
    try:
        return count_flops(lambda: build_model(cfg), 1, cfg.data.block_size), "counted by torch"
    except Exception:  # see `simulated`
        return flops_per_token(model, cfg.data.block_size), NOT_COUNTED
