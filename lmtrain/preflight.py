"""What is settled before a run starts, without torch: the config is right, the token files are there and fit it."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmtrain.config import ConfigError, build, check, mistakes_of_the_user
from lmtrain.console import console, duration

log = logging.getLogger(__name__)


def preflight(composed: DictConfig) -> DictConfig:
    """The checked config of a run that can start; token files that have a recipe and are missing are made.

    Raises:
        ConfigError: naming everything that is wrong with config or data.
    """
    if composed.get("resume") is not None:
        raise ConfigError(f"resume={composed.resume}: give it on the command line, as resume=RUN_DIR")
    cfg = check(composed)
    path = cfg.data.get("path")
    if path is None:  # a loader of the user's own, which knows its data itself
        return cfg
    with mistakes_of_the_user():
        ensure_tokens(cfg)
        return fit_vocabulary(cfg, Path(path))


def refuse_existing_run(run_dir: Path) -> None:
    """Raises ConfigError if a run is there already: a new one would mix with it."""
    if (run_dir / "metrics.jsonl").exists():
        raise ConfigError(f"hydra.run.dir={run_dir}: holds a run already; go on with resume={run_dir}, or give another")


def ensure_tokens(cfg: DictConfig) -> None:
    """Prepares `data.path` if it is missing and `prepare` says how.

    Raises:
        ValueError: it is missing and there is no recipe, or it was prepared by another one.
    """
    path = Path(cfg.data.path)
    if cfg.get("prepare") is None:
        if not path.is_dir():
            others = sorted(folder.name for folder in path.parent.glob("*") if (folder / "train.bin").exists())
            there = f"; {path.parent} has {', '.join(others)}" if others else ""
            raise ValueError(f"data.path={path}: no such folder{there}; see `python -m lmtrain prepare --help`")
        return
    from lmtrain.data.prepare import prepare, progress_bar

    recipe: dict[str, Any] = OmegaConf.to_container(cfg.prepare)  # type: ignore[assignment]
    with progress_bar() as progress:
        if not path.exists():
            progress.console.print(f"preparing {path} …")
        meta, seconds = prepare(path, recipe, build, progress)
    if seconds:
        counts = ", ".join(
            f"{name} {split.tokens:,} tokens of {split.documents:,} documents" for name, split in meta.splits.items()
        )
        console.print(f"prepared {path} in {duration(seconds)}: {counts}; vocabulary {meta.vocab_size:,}")


def fit_vocabulary(cfg: DictConfig, path: Path) -> DictConfig:
    """Fills in a `model.vocab_size` of null with the data's, and refuses one that is too small.

    Raises:
        ValueError: too small, or null where the data does not say.
    """
    from lmtrain.data.tokens import read_meta

    meta = read_meta(path)
    if "vocab_size" not in cfg.model:
        return cfg
    if cfg.model.vocab_size is None:
        if meta is None:
            raise ValueError(f"model.vocab_size=null: {path} has no meta.json to take it from; give a number")
        OmegaConf.update(cfg, "model.vocab_size", meta.vocab_size)
    elif meta and cfg.model.vocab_size < meta.vocab_size:
        raise ValueError(
            f"model.vocab_size={cfg.model.vocab_size}: {path} needs at least {meta.vocab_size}; null takes the data's"
        )
    return cfg
