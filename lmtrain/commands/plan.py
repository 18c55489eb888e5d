"""`python -m lmtrain plan [overrides]`: what this run would be, before it takes any time."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmtrain.commands.rounds import write_json
from lmtrain.config import ConfigError, build, compose, mistakes_of_the_user, without_hydra
from lmtrain.preflight import check_for_plan

if TYPE_CHECKING:
    from lmtrain.plan.memory import Step
    from lmtrain.plan.outcome import Measured, Plan
    from lmtrain.system import System

DEFAULT_MFU = 0.35  # of a compiled Llama of 50M parameters or more


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lmtrain plan",
        description="What a run would be: its size, FLOPs, memory, disk, time, cost and learning rate, and likely "
        "mistakes in it. Trains nothing, prepares nothing.",
        epilog="Example: python -m lmtrain plan experiments=quickstart optimizer.lr=1e-3",
    )
    parser.add_argument("overrides", nargs="*", help="config overrides, as for training")
    parser.add_argument("--measure", action="store_true", help="time a few real steps here, and their memory")
    parser.add_argument(
        "--price", type=float, help="dollars an hour, of this machine and any GPU (default: a table's for GPUs)"
    )
    parser.add_argument(
        "--mfu", type=float, default=DEFAULT_MFU, help=f"share of a GPU's peak that is reached (default: {DEFAULT_MFU})"
    )
    parser.add_argument("--json", type=Path, help="also write all numbers to this file")
    options = parser.parse_intermixed_args(list(arguments))
    if not 0 < options.mfu <= 1:
        raise ConfigError(f"--mfu {options.mfu}: a share, above 0 and at most 1")
    if options.price is not None and options.price < 0:
        raise ConfigError(f"--price {options.price}: dollars an hour, at least 0")
    composed = compose(options.overrides, with_hydra=True)
    run_dir = Path(composed.hydra.run.dir)
    cfg, missing = check_for_plan(without_hydra(composed))
    plan = make(cfg, run_dir, missing, measures=options.measure, mfu=options.mfu, price=options.price)
    from lmtrain.plan.show import show

    show(plan)
    if options.json:
        write_json(options.json, overrides=options.overrides, **plan.as_json())
    return 0


def make(cfg: Any, run_dir: Path, missing: Sequence[str], *, measures: bool, mfu: float, price: float | None) -> "Plan":
    """Builds what can be built without its memory, and asks it.

    Raises:
        ConfigError: a mistake that only building shows, or steps to be measured on data that is not there.
    """
    import torch

    from lmtrain.plan import hardware, parameters, picture, remarks
    from lmtrain.plan.facts import Facts, Intervals, Schedule
    from lmtrain.plan.memory import CUDA_CONTEXT, Numbers
    from lmtrain.plan.outcome import Plan
    from lmtrain.report import estimate_seconds
    from lmtrain.train import check_block_size, check_samples

    if measures and missing:
        raise ConfigError(f"--measure: {missing[0]} has no token files; python -m lmtrain prepare makes them")
    trainer = cfg.trainer
    accumulation, max_steps = trainer.get("gradient_accumulation_steps", 1), trainer.max_steps
    batch_size, block_size = cfg.data.batch_size, cfg.data.block_size
    step_tokens = accumulation * batch_size * block_size
    with mistakes_of_the_user():
        system: System = build(cfg.system)
        system.seed(cfg.seed)
        model = _without_memory(cfg)
        check_block_size(model, cfg)
        schedule = build(cfg.scheduler)
        train_loader = val_loader = None
        if not missing:
            train_loader = build(cfg.data, split="train", seed=cfg.seed)
            val_loader = build(cfg.data, split="val", seed=cfg.seed)
            check_samples(train_loader, cfg)
        steps, rates = picture.sampled(schedule, max_steps)
    device = system.device.type
    numbers = Numbers(device, system.dtype, min(accumulation, 2), batch_size, block_size)
    here, no_memory = _simulated(cfg, numbers)
    on_cuda = here
    if (device, system.dtype.itemsize) != ("cuda", 2):
        on_cuda, _ = _simulated(cfg, Numbers("cuda", torch.bfloat16, numbers.micro_batches, batch_size, block_size))
    flops_per_token, flops_from = _flops(cfg, model)
    measured = _measured(cfg, system, train_loader, val_loader) if measures else None
    estimated = estimate_seconds(flops_per_token * step_tokens, system) if flops_per_token else None
    step_seconds = measured.step_seconds if measured else estimated
    vocab_size = here.logits_shape[-1] if here else cfg.model.get("vocab_size")
    count = sum(param.numel() for param in model.parameters())
    # Without a trial run: float32 weights, and AdamW's two moments.
    checkpoint_bytes = here.checkpoint_bytes if here else 3 * 4 * count
    checkpoints = _checkpoints_kept(trainer, max_steps)
    beside = _beside(system, checkpoint_bytes)
    peak = measured.peak_bytes if measured and device == "cuda" else here.peak_bytes if here else None
    epochs = dict(train_loader.epochs(max_steps * accumulation * batch_size)) if train_loader else {}
    facts = Facts(
        schedule=Schedule.of(cfg.scheduler, max_steps),
        intervals=Intervals(
            *(trainer.get(key) for key in ("eval_interval", "log_interval", "checkpoint_interval", "eval_batches"))
        ),
        parameters=count,
        step_tokens=step_tokens,
        micro_batch_tokens=batch_size * block_size,
        block_size=block_size,
        device=device,
        dtype=system.dtype_name,
        epochs=epochs,
        steps_per_epoch=max_steps / max(epochs.values()) if epochs and max(epochs.values()) else None,
        val_tokens=val_loader.total_tokens if val_loader else None,
        step_seconds=step_seconds,
        checkpoint_bytes=checkpoint_bytes,
        disk_needed=checkpoints * checkpoint_bytes,
        disk_free=hardware.disk_free(run_dir),
        memory_needed=None if peak is None else peak + sum(beside.values()),
        memory_free=torch.cuda.mem_get_info(system.device)[1] if device == "cuda" else hardware.memory_available(),
        batch_size=batch_size,
        vocab_size=vocab_size,
        d_model=cfg.model.get("d_model"),
        n_head=cfg.model.get("n_head"),
        longest=getattr(model, "block_size", None),
        learned_positions=parameters.has_learned_positions(model),
        speed_to_float32=system.speed_to_float32() if device == "cpu" else None,
        idle_gpu=device == "cpu" and torch.cuda.is_available(),
    )
    run_flops = flops_per_token * step_tokens * max_steps
    return Plan(
        name=str(cfg.name),
        machine=system.describe(),
        model=type(model).__name__,
        parts=parameters.by_part(model, vocab_size),
        facts=facts,
        flops_per_token=flops_per_token,
        flops_from=flops_from,
        here=here,
        on_cuda=on_cuda,
        beside=beside,
        no_memory=no_memory,
        missing=missing,
        measured=measured,
        dollars_per_hour=_price_here(system) if price is None else price,
        checkpoints=checkpoints,
        steps=steps,
        rates=rates,
        offers=hardware.offers(
            run_flops,
            on_cuda.micro_batch_kernels * accumulation * max_steps if on_cuda else 0,
            on_cuda.peak_bytes + CUDA_CONTEXT if on_cuda else None,
            mfu=mfu,
            dollars_per_hour=price,
        ),
        mfu=mfu,
        remarks=remarks.remarks(facts),
    )


def _without_memory(cfg: Any) -> Any:
    """The model with shapes alone; of one that can't be built so, the real one."""
    import torch

    try:
        with torch.device("meta"):
            return build(cfg.model)
    except (RuntimeError, NotImplementedError):  # it looks at its own weights
        return build(cfg.model)


def _simulated(cfg: Any, numbers: Any) -> "tuple[Step | None, str | None]":
    """The step, or the reason why it can't be known without running it."""
    from lmtrain.plan.memory import simulate

    def parts() -> Any:
        model = build(cfg.model)
        return model, build(cfg.optimizer, list(model.named_parameters()))

    try:
        return simulate(parts, numbers), None
    except Exception as error:  # whatever a user's model or optimizer does with data that is not there
        return None, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _flops(cfg: Any, model: Any) -> tuple[float, str]:
    from lmtrain.flops import flops_per_token
    from lmtrain.plan.memory import count_flops

    if hasattr(model, "flops_per_token"):
        return flops_per_token(model, cfg.data.block_size), "the model's own count"
    try:
        return count_flops(lambda: build(cfg.model), 1, cfg.data.block_size), "counted by torch"
    except Exception:  # as above
        return flops_per_token(model, cfg.data.block_size), "6 a parameter"


def _measured(cfg: Any, system: "System", train_loader: Any, val_loader: Any) -> "Measured":
    from lmtrain.commands.plan_measure import measure

    return measure(cfg, system, train_loader, val_loader)


def _price_here(system: "System") -> float | None:
    import torch

    from lmtrain.gpu_models import known

    gpu = known(torch.cuda.get_device_name(system.device)) if system.device.type == "cuda" else None
    return gpu.dollars_per_hour if gpu else None


def _checkpoints_kept(trainer: Any, max_steps: int) -> int:
    """How many lie on the disk at once, with the best and the one that is being written."""
    every, interval = trainer.get("keep_every"), trainer.get("checkpoint_interval", max_steps)
    made = -(-max_steps // interval) + -(-max_steps // trainer.get("eval_interval", max_steps))
    kept = trainer.get("keep_checkpoints", 1) + 1 + (max_steps // every if every else 0)
    return int(min(kept, made) + 1)


def _beside(system: "System", checkpoint_bytes: int) -> dict[str, int]:
    """Memory on the device beside the step's own: bytes by what they are for."""
    from lmtrain.plan.memory import CUDA_CONTEXT

    if system.device.type == "cuda":
        return {"CUDA context": CUDA_CONTEXT}
    return {"copy for checkpoints": checkpoint_bytes, "Python and torch": system.process_bytes()}
