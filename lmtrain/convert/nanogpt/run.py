"""Writes a run directory from an imported checkpoint, as if lmtrain had trained and saved it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from lmtrain.checkpoint.folder import CheckpointFolder, Retention
from lmtrain.checkpoint.optimizer_state import load_optimizer_state
from lmtrain.checkpoint.recorder import Recorder
from lmtrain.checkpoint.saver import Saver
from lmtrain.checkpoint.snapshot import TrainState
from lmtrain.config.build import build
from lmtrain.config.token_files import token_folders
from lmtrain.convert.nanogpt.checkpoint import NanoGPTCheckpoint, check_weights_fit
from lmtrain.convert.new_directory import empty_again_after_error
from lmtrain.data.stored_tokenizer import StoredTokenizer, copy_tokenizer, save_tokenizer
from lmtrain.errors import COMPLETED
from lmtrain.logger.jsonl import JsonlLogger
from lmtrain.loop.bad_batches import BadBatches
from lmtrain.loop.training_parts import Parts
from lmtrain.model.gpt2 import GPT2
from lmtrain.parts import build_parts, build_system
from lmtrain.run.directory import RunDirectory
from lmtrain.run.environment import describe_environment, hardware_and_software
from lmtrain.trainer import Trainer


def write_run(
    cfg: DictConfig,
    source: NanoGPTCheckpoint,
    run_dir: Path,
    *,
    hydra_files: Mapping[str, str],
    origin: Mapping[str, Any],
    characters: StoredTokenizer | None,
) -> None:
    """Write the run into a directory that is empty or does not exist. After an error it is again as before.

    `hydra_files` are written to `.hydra/`, and `origin` to `imported.json`. `characters` is the tokenizer from
    nanoGPT's `meta.pkl`, if there is one.

    Raises:
        ValueError: the checkpoint does not fit the config, or the directory is in use.
        OSError: the directory can't be written.
    """
    parts = build_parts(cfg, build_system(cfg, device="cpu", compile=False))  # on the CPU, as nothing is computed
    _load_weights_and_moments(parts, source)
    state = _state_of(source, cfg)
    existed = run_dir.exists()
    with RunDirectory(run_dir) as directory:  # raises for a directory that another process uses
        now = describe_environment(directory.run_id(), parts.system.describe())
        with empty_again_after_error(directory.path, existed=existed):
            _save_first_checkpoint(cfg, parts, state, directory, now)
            directory.write_json("imported.json", origin)
            _write_run_files(cfg, directory, now, hydra_files, characters)


def _load_weights_and_moments(parts: Parts, source: NanoGPTCheckpoint) -> None:
    """Load the checkpoint into the model and its optimizer; raise ValueError if it does not fit."""
    if not isinstance(parts.model, GPT2):
        raise ValueError(f"model: {type(parts.model).__name__}, but a nanoGPT checkpoint needs model=gpt2")
    if not isinstance(parts.optimizer, torch.optim.AdamW):
        raise ValueError(
            f"optimizer={type(parts.optimizer).__name__}: the checkpoint has the state of AdamW; use optimizer=adamw"
        )
    check_weights_fit(source.weights, parts.model.state_dict())
    parts.model.load_state_dict(dict(source.weights))
    load_optimizer_state(parts.optimizer, parts.model.named_parameters(), source.optimizer, {})


def _state_of(source: NanoGPTCheckpoint, cfg: DictConfig) -> TrainState:
    """Return the state at the checkpoint's step, with the number of samples that lmtrain would have seen by then."""
    step_samples = cfg.data.batch_size * cfg.trainer.gradient_accumulation_steps
    return TrainState(
        step=source.iter_num,
        samples=source.iter_num * step_samples,
        tokens=source.iter_num * (source.tokens_per_step() or step_samples * cfg.data.block_size),
        val_loss=source.best_val_loss,
        best_val_loss=source.best_val_loss,
        best_step=None if source.best_val_loss is None else source.iter_num,
        first_step=source.iter_num,
    )


def _save_first_checkpoint(
    cfg: DictConfig, parts: Parts, state: TrainState, directory: RunDirectory, now: Mapping[str, Any]
) -> None:
    """Save a checkpoint as the trainer does after that step, and create `metrics.jsonl`, which marks a run."""
    folder = CheckpointFolder.of_run(directory.path, now["run_id"])
    recorder = Recorder(
        logger=JsonlLogger(directory.path / "metrics.jsonl"),
        saver=Saver(folder),
        bad_batches=BadBatches(directory.path / "bad-batches", parts.train_loader, decode=None),
        identity={
            "run_id": now["run_id"],
            "config": OmegaConf.to_container(cfg),
            "environment": hardware_and_software(now),
        },
    )
    trainer: Trainer = build(cfg.trainer, parts, recorder, state)
    retention = Retention(newest=1, best_step=state.best_step)
    folder.save(state.step, trainer.snapshot.take(state), retention)
    recorder.logger.close(COMPLETED.status)


def _write_run_files(
    cfg: DictConfig,
    directory: RunDirectory,
    now: Mapping[str, Any],
    hydra_files: Mapping[str, str],
    characters: StoredTokenizer | None,
) -> None:
    """Write the files that a resume reads, and a tokenizer for sampling: the data's, or `characters` if it has none."""
    directory.write_json("environment.json", now)
    folder = next(iter(token_folders(cfg.data).values()), None)
    has_own = folder is not None and copy_tokenizer(folder, directory.path)
    if characters is not None and not has_own:
        save_tokenizer(directory.path, characters)
    directory.write_config(OmegaConf.to_yaml(cfg), hydra_files)
