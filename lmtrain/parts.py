"""Builds the parts of a run from its checked config, in the order that data flows through them.

Every command that needs parts calls these functions. They also check that the parts fit together. All of them raise
ValueError or ConfigError for a mistake that shows only when a part is built.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.checkpoint.recorder import Recorder
from lmtrain.checkpoint.saver import Saver
from lmtrain.checkpoint.snapshot import TrainState
from lmtrain.checkpoint.stored_model import stored_model_size
from lmtrain.config.batch_size import batch_sizes, refuse_auto
from lmtrain.config.build import build
from lmtrain.data.loader import TokenLoader
from lmtrain.hardware.generators import seed_of_rank
from lmtrain.hardware.work import NO_WORK, Work, products_per_cast
from lmtrain.logger.base import RunLogger
from lmtrain.logger.jsonl import JsonlLogger
from lmtrain.loop.bad_batches import BadBatches
from lmtrain.loop.evaluation_weights import averages_weights
from lmtrain.loop.training_parts import Parts
from lmtrain.machine import total_memory
from lmtrain.model.attention import Attention
from lmtrain.model.flops import flops_per_token
from lmtrain.model.size_limit import ModelTooLargeError, SizeLimit, refuse_too_large
from lmtrain.optimizer.elementwise import is_elementwise
from lmtrain.parallel.base import Parallel
from lmtrain.parallel.choices import auto
from lmtrain.parallel.peers import Peers
from lmtrain.parallel.world import ALONE, World
from lmtrain.system import System
from lmtrain.terminal.units import counted
from lmtrain.torch_internals import postpone_compiler_import
from lmtrain.trainer import Trainer


def build_parts(
    cfg: DictConfig,
    system: System | None = None,
    *,
    kept: Mapping[str, Any] | None = None,
    choose_for: DictConfig | None = None,
    peers: Peers | None = None,
) -> Parts:
    """Build all parts of a run.

    Args:
        cfg: The checked config.
        system: A system other than the config's.
        kept: What `auto` became in the run that is continued, by config key.
        choose_for: The config of the run for whose work the system chooses, if `cfg` is only a piece of it.
        peers: The connection to the other processes of the run, each of which builds the same parts; None for a run of
            one process.
    """
    system = system or build_system(cfg, peers.world if peers else ALONE)
    parallel = build_parallel(cfg, system, peers)
    if parallel.world.size > 1 and system.uses_cuda_graphs:
        raise ValueError(
            f"system.compile={system.compile_mode}: CUDA graphs don't know the gradients of several processes; use "
            "system.compile=true"
        )
    train_loader, val_loader = build_loaders(cfg)
    _check_same_data(parallel, train_loader, val_loader)
    model = parallel.build(lambda: build_model(cfg)) if _is_shipped(cfg.model) else build_model(cfg)
    # The choice may depend on a measurement, so that only one process makes it.
    chosen = parallel.from_first(lambda: _choose(system, work_of(choose_for or cfg, model), kept or {}))
    if not parallel.world.is_first:
        _choose(system, NO_WORK, chosen)
    check_attention(model, system)
    _check_sharing(parallel, model, system)
    parallel.split(model, system.device)
    updated = parallel.updated(model, whole_tensors(cfg, model) if parallel.layout else ())
    optimizer = build_optimizer(cfg, updated)
    if not parallel.world.is_first:  # dropout has other masks for other sequences
        system.seed(seed_of_rank(cfg.seed, parallel.world.rank))
    return Parts(system, train_loader, val_loader, model, optimizer, updated, build(cfg.scheduler), parallel)


def _choose(system: System, work: Work, kept: Mapping[str, Any]) -> dict[str, Any]:
    system.choose(work, kept)
    return system.resolved


def build_system(cfg: DictConfig, world: World = ALONE, /, **changes: Any) -> System:
    """Build the system and seed its random generators. Call this first, because it sets how memory is allocated.

    Among several processes, one on a GPU takes that of its local rank. `changes` replace values of the config, for
    example `device="cpu"`.
    """
    if world.size > 1 and cfg.system.get("device") in ("auto", "cuda") and torch.cuda.is_available():
        # Slurm may show each process a GPU of its own.
        changes = {"device": f"cuda:{world.local_rank if torch.cuda.device_count() > 1 else 0}"} | changes
    system: System = build(cfg.system, **changes)
    system.seed(cfg.seed)
    return system


def build_parallel(cfg: DictConfig, system: System, peers: Peers | None) -> Parallel:
    """Build what connects the processes of a run; a config of an older version has no such group."""
    node = cfg.get("parallel")
    parallel: Parallel = auto(system.device, peers) if node is None else build(node, system.device, peers)
    return parallel


def work_of(cfg: DictConfig, model: nn.Module) -> Work:
    """Return the work on which `system.dtype=auto` and `system.compile=auto` depend; the model may have no memory.

    All steps count, also those before a resume or a fork, which keep the choice made then. A global batch counts as a
    whole: how it is cut does not matter, because `data.batch_size=auto` cuts it by what happens to be fastest, and the
    config and the machine alone decide.
    """
    block_size, whole = cfg.data.get("block_size") or 0, cfg.trainer.get("global_batch_size")
    tokens = (whole or cfg.data.get("batch_size") or 0) * block_size
    run_tokens = batch_sizes(cfg).tokens(cfg.trainer.get("max_steps") or 0)
    return Work(flops_per_token(model, block_size) * run_tokens, products_per_cast(model, tokens))


def build_loaders(cfg: DictConfig) -> tuple[TokenLoader, TokenLoader]:
    """Build the loaders of the training split and the validation split."""
    refuse_auto(cfg)
    train_loader: TokenLoader = build(cfg.data, split="train", seed=cfg.seed)
    _check_samples(train_loader, cfg)
    return train_loader, build(cfg.data, split="val", seed=cfg.seed)


def build_model(cfg: DictConfig) -> nn.Module:
    """Build the model on the CPU, so that a seed gives the same model on every device.

    Under `torch.device("meta")` the parameters have shapes but no memory.
    """
    model: nn.Module = build(cfg.model)
    max_block_size = getattr(model, "block_size", None)
    if max_block_size is not None and cfg.data.get("block_size", 0) > max_block_size:
        raise ValueError(
            f"data.block_size={cfg.data.block_size}: longer than model.block_size={max_block_size}; "
            "change one of the two"
        )
    return model


def check_attention(model: nn.Module, system: System) -> dict[str, str]:
    """Check that the model's kind of attention exists on the device, and can do what the run needs.

    Return what `auto` became, by config key; empty if the config names the kind, or the model has no such choice.
    """
    attention = getattr(model, "attention", None)
    if not isinstance(attention, Attention):
        return {}
    kind = attention.check(system.device, system.dtype)
    return {"model.attention": kind} if attention.kind == "auto" else {}


def check_model_size(cfg: DictConfig, checkpoints: Sequence[Path] = ()) -> None:
    """Check that the model fits into this machine's memory, and is no larger than the models in `checkpoints`.

    Call this first, before any memory is allocated. Classes from outside lmtrain are not checked: the check builds the
    model without memory, and a cache that such a class keeps elsewhere would then contain tensors without memory.
    """
    if not _is_shipped(cfg.model):
        return
    found = [size for path in checkpoints if (size := stored_model_size(path))]
    stored = max(found, key=lambda size: size[1], default=(None, None))
    try:
        refuse_too_large(lambda: build_model(cfg), SizeLimit(total_memory(), *stored))
    except ModelTooLargeError as error:
        sizes = ", ".join(f"{key}={value}" for key, value in cfg.model.items() if type(value) is int)
        raise ValueError(f"model ({sizes}): {error}") from error


def build_optimizer(cfg: DictConfig, params: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimizer for parameters by name."""
    postpone_compiler_import()
    optimizer: torch.optim.Optimizer = build(cfg.optimizer, list(params.items()))
    return optimizer


def whole_tensors(cfg: DictConfig, model: nn.Module) -> set[str]:
    """Return the names of the parameters that the config's optimizer can update only as a whole.

    Raises:
        ValueError: The optimizer also has weights for evaluation, which it could not compute from them.
    """
    shapes = {
        name: nn.Parameter(torch.empty(param.shape, dtype=param.dtype, device="meta"), param.requires_grad)
        for name, param in model.named_parameters()
    }
    optimizer, names = build_optimizer(cfg, shapes), {param: name for name, param in shapes.items()}
    whole = {
        names[param]
        for group in optimizer.param_groups
        if not is_elementwise(optimizer, group)
        for param in group["params"]
    }
    if whole and averages_weights(optimizer):
        raise ValueError(
            "parallel=fsdp: this optimizer averages the weights, but can't do so for parts of tensors; use "
            "optimizer=schedule_free, or parallel=ddp"
        )
    return whole


def build_scratch_trainer(
    cfg: DictConfig, parts: Parts, folder: Path, logger: RunLogger | None = None, **changes: Any
) -> Trainer:
    """Build a trainer at step 0 for measurements and checks, whose files belong to no run.

    Args:
        cfg: The checked config.
        parts: The parts that `build_parts` built from it.
        folder: Where metrics, checkpoints and bad batches go. Without metrics, it need not exist.
        logger: Receives the metrics; None means a `metrics.jsonl` in the folder.
        changes: Values that replace those of `cfg.trainer`.
    """
    recorder = Recorder(
        logger or JsonlLogger(folder / "metrics.jsonl"),
        Saver(CheckpointFolder.of_run(folder)),
        BadBatches(folder / "bad-batches", parts.train_loader, decode=None),
    )
    trainer: Trainer = build(cfg.trainer, parts, recorder, TrainState(), **changes)
    parts.model.train()  # as `fit` does, for callers of `step`
    return trainer


def _is_shipped(node: DictConfig) -> bool:
    """Return whether a part's class is lmtrain's own, which can also be built without memory."""
    return str(node.get("_target_")).startswith("lmtrain.")


def _check_sharing(parallel: Parallel, model: nn.Module, system: System) -> None:
    """Raise ValueError if processes can't share the model in this way."""
    if not parallel.shares_model:
        return
    if system.dtype_name == "float8":
        raise ValueError("system.dtype=float8: works only with the whole model in each process; use parallel=ddp")
    if parallel.param_dtype is not None and system.dtype != parallel.param_dtype:
        name = str(parallel.param_dtype).removeprefix("torch.")
        raise ValueError(
            f"parallel.param_dtype={name}: needs system.dtype={name}, and the run computes in {system.dtype_name}"
        )


def _check_same_data(parallel: Parallel, *loaders: TokenLoader) -> None:
    """Raise ValueError if another process has other token files in the same folder, such as those of another host."""
    if parallel.world.size == 1:
        return
    for loader in loaders:
        first, *others = parallel.every(loader.fingerprint)
        for rank, other in enumerate(others, 1):
            if other != first:
                raise ValueError(f"data.path={loader.path}: rank {rank} has another {loader.split} split than rank 0")


def _check_samples(train_loader: TokenLoader, cfg: DictConfig) -> None:
    """Check that `data.max_epochs` allows enough samples for all steps."""
    max_samples = getattr(train_loader, "max_samples", None)
    if max_samples is not None and "gradient_accumulation_steps" in cfg.trainer:
        sizes = batch_sizes(cfg)
        if sizes.tokens(cfg.trainer.max_steps) > max_samples * train_loader.block_size:
            raise ValueError(
                f"trainer.max_steps={cfg.trainer.max_steps}: data.max_epochs allows {max_samples:,} samples, which are "
                f"enough for {counted(int(sizes.steps(max_samples * train_loader.block_size)), 'step')}"
            )
