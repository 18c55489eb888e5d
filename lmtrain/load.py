"""Reads a finished (or running) run back: its config, model and tokenizer."""

from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from tokenizers import Tokenizer
from torch import nn

from lmtrain import checkpoint
from lmtrain.config import ConfigError, build
from lmtrain.data import tokenizer as tokenizers
from lmtrain.system import System


@dataclass(frozen=True)
class LoadedRun:
    """A run's model as of one checkpoint, on the device of `system`."""

    cfg: DictConfig
    model: nn.Module
    tokenizer: Tokenizer | None
    system: System
    step: int


def load_run(run_dir: Path, which: str, device: str) -> LoadedRun:
    """The run's `best`, `latest` or numbered checkpoint; the run may go on meanwhile.

    Raises:
        ConfigError: there is no such run or checkpoint, or it is broken.
    """
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"{run_dir}: not a run directory (no config.yaml)")
    checkpoints = checkpoint.CheckpointFolder(run_dir / "checkpoints")
    steps = checkpoints.steps()
    path = run_dir / "checkpoints" / which if which in ("best", "latest") else checkpoints.at(_step(which))
    if not path.is_dir():
        there = f"steps {', '.join(map(str, steps))}" if steps else "none yet"
        raise ConfigError(f"{run_dir}: no checkpoint {which!r}; there are {there}")
    cfg = OmegaConf.load(run_dir / "config.yaml")
    assert isinstance(cfg, DictConfig)
    system: System = build(cfg.system, device=device, compile=False)
    try:
        loaded = checkpoint.load(path)
        model: nn.Module = build(cfg.model)
        model.load_state_dict(dict(loaded.tensors["model"]))
    except (checkpoint.BrokenCheckpointError, RuntimeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    tokenizer = run_dir / tokenizers.FILE
    return LoadedRun(
        cfg,
        model.to(system.device).eval(),
        tokenizers.load(str(tokenizer)) if tokenizer.is_file() else None,
        system,
        loaded.state["train"]["step"],
    )


def _step(which: str) -> int:
    if not which.isdecimal():
        raise ConfigError(f"--checkpoint {which}: best, latest or a step")
    return int(which)


def seeded(seed: int) -> torch.Generator:
    """A generator of its own for sampling."""
    return torch.Generator().manual_seed(seed)
