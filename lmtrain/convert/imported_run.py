"""Writes a run directory from an imported checkpoint, as if lmtrain had trained and saved it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from omegaconf import DictConfig, OmegaConf

from lmtrain.checkpoint.folder import CheckpointFolder, Retention
from lmtrain.checkpoint.optimizer_state import load_optimizer_state
from lmtrain.checkpoint.recorder import Recorder
from lmtrain.checkpoint.saver import Saver
from lmtrain.checkpoint.snapshot import TrainState
from lmtrain.config.build import build
from lmtrain.config.token_files import token_folders
from lmtrain.convert.imported_model import ImportedModel, check_fits
from lmtrain.convert.new_directory import empty_again_after_error
from lmtrain.data.stored_tokenizer import StoredTokenizer, copy_tokenizer, save_tokenizer
from lmtrain.errors import COMPLETED
from lmtrain.logger.jsonl import JsonlLogger
from lmtrain.loop.bad_batches import BadBatches
from lmtrain.loop.training_parts import Parts
from lmtrain.parts import build_parts, build_system
from lmtrain.run.directory import RunDirectory
from lmtrain.run.environment import describe_environment, hardware_and_software
from lmtrain.trainer import Trainer


class Source(Protocol):
    """The training of another program that a run continues."""

    @property
    def weights(self) -> Mapping[str, torch.Tensor]:
        """The tensors of the model by their names here."""

    @property
    def optimizer(self) -> Mapping[str, torch.Tensor] | None:
        """The optimizer's state in the format of `lmtrain.checkpoint.optimizer_state`; None for a new one."""

    @property
    def step(self) -> int:
        """The number of optimizer steps so far."""

    @property
    def best_val_loss(self) -> float | None:
        """The validation loss, if it was measured at this step."""

    def tokens_per_step(self) -> int | None:
        """Return the tokens per step of the training so far; None if that is not known."""

    def check(self, parts: Parts) -> None:
        """Raise ValueError unless weights and optimizer fit the parts of a run."""


class WeightsOnly:
    """A source with the weights of a model, which begins at step 0 with a new optimizer."""

    optimizer = best_val_loss = None
    step = 0

    def __init__(self, model: ImportedModel) -> None:
        self.model, self.weights = model, model.weights

    def tokens_per_step(self) -> int | None:
        return None

    def check(self, parts: Parts) -> None:
        check_fits(self.weights, parts.model, self.model.their_name)


def write_run(
    cfg: DictConfig,
    source: Source,
    run_dir: Path,
    *,
    hydra_files: Mapping[str, str],
    origin: Mapping[str, Any],
    tokenizer: StoredTokenizer | None,
    written_cfg: DictConfig | None = None,
) -> None:
    """Write the run into a directory that is empty or does not exist. After an error it is again as before.

    `hydra_files` are written to `.hydra/`, and `origin` to `imported.json`. `tokenizer` is the one for data without its
    own, if there is one. `written_cfg` is the config of the run, if it is not the one that its parts are built from.

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
            _save_first_checkpoint(written_cfg or cfg, parts, state, directory, now)
            directory.write_json("imported.json", origin)
            _write_run_files(written_cfg or cfg, directory, now, hydra_files, tokenizer)


def _load_weights_and_moments(parts: Parts, source: Source) -> None:
    """Load the source into the model and its optimizer; raise ValueError if it does not fit."""
    source.check(parts)
    parts.model.load_state_dict(dict(source.weights))
    if source.optimizer is not None:
        load_optimizer_state(parts.optimizer, parts.model.named_parameters(), source.optimizer, {})


def _state_of(source: Source, cfg: DictConfig) -> TrainState:
    """Return the state at the checkpoint's step, with the number of samples that lmtrain would have seen by then."""
    step_samples = cfg.data.batch_size * cfg.trainer.gradient_accumulation_steps
    return TrainState(
        step=source.step,
        samples=source.step * step_samples,
        tokens=source.step * (source.tokens_per_step() or step_samples * cfg.data.block_size),
        val_loss=source.best_val_loss,
        best_val_loss=source.best_val_loss,
        best_step=None if source.best_val_loss is None else source.step,
        first_step=source.step,
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
    tokenizer: StoredTokenizer | None,
) -> None:
    """Write the files that a resume reads, and a tokenizer for sampling: the data's, or `tokenizer` if it has none."""
    directory.write_json("environment.json", now)
    folder = next(iter(token_folders(cfg.data).values()), None)
    has_own = folder is not None and copy_tokenizer(folder, directory.path)
    if tokenizer is not None and not has_own:
        save_tokenizer(directory.path, tokenizer)
    directory.write_config(OmegaConf.to_yaml(cfg), hydra_files)
