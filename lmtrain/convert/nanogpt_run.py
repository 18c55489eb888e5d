"""A run directory that begins with a state trained elsewhere, as if lmtrain had trained and saved it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lmtrain.checkpoint.folder import CheckpointFolder, Retention
from lmtrain.checkpoint.optimizer_state import load_optimizer_state
from lmtrain.checkpoint.saver import Saver
from lmtrain.checkpoint.snapshot import TrainState
from lmtrain.config.build import build
from lmtrain.config.token_files import token_folders
from lmtrain.convert.nanogpt_checkpoint import NanoGPT, check_fit
from lmtrain.data import tokenizer as tokenizers
from lmtrain.errors import COMPLETED
from lmtrain.logger.jsonl import JsonlLogger
from lmtrain.loop.bad_batches import BadBatches
from lmtrain.loop.stop_request import StopRequest
from lmtrain.model.gpt2 import GPT2
from lmtrain.run.directory import RunDirectory
from lmtrain.run.environment import describe_environment, hardware_and_software
from lmtrain.system import System
from lmtrain.trainer import Trainer


def write_run(
    cfg: DictConfig, source: NanoGPT, run_dir: Path, *, hydra_files: Mapping[str, str], origin: Mapping[str, Any]
) -> None:
    """Fills the directory, which is empty or not there, or leaves it so; `hydra_files` go into `.hydra/`, and `origin`
    becomes `imported.json`.

    Raises:
        ValueError: the checkpoint does not fit the config, or the directory is in use.
        OSError: the disk refuses.
    """
    parts = build_parts(cfg, source)
    existed = run_dir.exists()
    with RunDirectory(run_dir) as directory:  # another process's is never touched
        now = describe_environment(directory.run_id(), parts["system"].describe())
        try:
            save_first_checkpoint(cfg, parts, directory, now)
            directory.write_json("imported.json", origin)
            record(cfg, directory, now, hydra_files)
        except BaseException:
            for path in directory.path.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if not existed:
                directory.path.rmdir()
            raise


def build_parts(cfg: DictConfig, source: NanoGPT) -> dict[str, Any]:
    """The trainer's parts by name, in the state of the checkpoint; all on the CPU, where nothing is computed.

    Raises:
        ValueError: the checkpoint does not fit the config.
    """
    with torch.device("meta"):
        sizes = build(cfg.model)
    if not isinstance(sizes, GPT2):
        raise ValueError(f"model: {type(sizes).__name__}, but a nanoGPT checkpoint is one of model=gpt2")
    check_fit(source.weights, sizes.state_dict())
    if cfg.data.block_size > cfg.model.block_size:
        raise ValueError(f"data.block_size={cfg.data.block_size}: longer than model.block_size={cfg.model.block_size}")
    system: System = build(cfg.system, device="cpu", compile=False)
    system.seed(cfg.seed)
    model: nn.Module = build(cfg.model)
    model.load_state_dict(dict(source.weights))
    optimizer = build(cfg.optimizer, list(model.named_parameters()))
    if not isinstance(optimizer, torch.optim.AdamW):
        raise ValueError(f"optimizer={type(optimizer).__name__}: the checkpoint's state is that of AdamW")
    load_optimizer_state(optimizer, model.named_parameters(), source.optimizer, {})
    step_samples = cfg.data.batch_size * cfg.trainer.gradient_accumulation_steps
    state = TrainState(
        step=source.iter_num,
        samples=source.iter_num * step_samples,
        tokens=source.iter_num * (source.tokens_per_step() or step_samples * cfg.data.block_size),
        val_loss=source.best_val_loss,
        best_val_loss=source.best_val_loss,
        best_step=None if source.best_val_loss is None else source.iter_num,
        first_step=source.iter_num,
    )
    loaders = {f"{split}_loader": build(cfg.data, split=split, seed=cfg.seed) for split in ("train", "val")}
    schedule = build(cfg.scheduler)
    return {"model": model, "optimizer": optimizer, "schedule": schedule, "system": system, "state": state, **loaders}


def save_first_checkpoint(
    cfg: DictConfig, parts: Mapping[str, Any], directory: RunDirectory, now: Mapping[str, Any]
) -> None:
    """As the trainer itself would after the step of `state`; also begins `metrics.jsonl`, which marks a run."""
    state, folder = parts["state"], CheckpointFolder(directory.path / "checkpoints", now["run_id"])
    logger = JsonlLogger(directory.path / "metrics.jsonl")
    trainer: Trainer = build(
        cfg.trainer,
        **parts,
        logger=logger,
        saver=Saver(folder),
        bad_batches=BadBatches(directory.path / "bad-batches", parts["train_loader"], decode=None),
        stop=StopRequest(),
        record={
            "run_id": now["run_id"],
            "config": OmegaConf.to_container(cfg),
            "environment": hardware_and_software(now),
        },
    )
    folder.save(state.step, trainer.checkpoint(), Retention(newest=1, best_step=state.best_step))
    logger.close(COMPLETED.status)


def record(cfg: DictConfig, directory: RunDirectory, now: Mapping[str, Any], hydra_files: Mapping[str, str]) -> None:
    """The files that a resume reads, and a copy of the data's tokenizer, for sampling."""
    directory.write_json("environment.json", now)
    folder = next(iter(token_folders(cfg.data).values()), None)
    if folder is not None:
        tokenizers.copy(folder, directory.path)
    directory.write_config(OmegaConf.to_yaml(cfg), hydra_files)
