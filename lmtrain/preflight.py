"""What is settled before a run starts, without torch: the config is right, the token files are there and fit it."""

import importlib.util
import logging
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmtrain.config import ConfigError, build, check, mistakes_of_the_user
from lmtrain.console import console, duration
from lmtrain.run_directory import checkpoint_steps

log = logging.getLogger(__name__)

# The packages, and extras of their names, that optional parts need.
EXTRAS = {
    "lmtrain.logger.tensorboard.TensorBoardLogger": "tensorboard",
    "lmtrain.logger.trackio.TrackioLogger": "trackio",
}


def preflight(composed: DictConfig, *, begun: bool = False) -> DictConfig:
    """The checked config of a run that can start. Token files that have a recipe and are missing are made, except for a
    run that has `begun`, which has its data; it has checkpoints as well, and may have outlived the one it is a fork of.

    Raises:
        ConfigError: naming everything that is wrong with config or data.
    """
    if composed.get("resume") is not None:
        raise ConfigError(f"resume={composed.resume}: give it on the command line, as resume=RUN_DIR")
    if not begun:
        _check_origin(composed)
    cfg = check(composed)
    _check_extras(cfg)
    with mistakes_of_the_user():
        ensure_tokens(cfg, prepares=not begun)
        return fit_to_data(cfg)


def _check_origin(composed: DictConfig) -> None:
    """Of a fork: is there such a checkpoint? Whether it is whole is seen when it is read."""
    run, step = composed.get("fork"), composed.get("step")
    if run is None:
        if step is not None:
            raise ConfigError(f"step={step}: goes with fork=RUN_DIR, and is the step of its checkpoint")
        return
    steps = checkpoint_steps(Path(run))
    if isinstance(step, int) and step not in steps:
        there = f"checkpoints of the steps {', '.join(map(str, steps))}" if steps else "no checkpoint"
        raise ConfigError(f"step={step}: {run} has {there}")


def _check_extras(cfg: DictConfig) -> None:
    for name, node in cfg.logger.items():
        package = EXTRAS.get(node["_target_"])
        if package and importlib.util.find_spec(package) is None:
            raise ConfigError(f"logger={name}: needs the {package} package; pip install -e '.[{package}]'")


def check_for_plan(composed: DictConfig) -> tuple[DictConfig, list[str]]:
    """The checked config of a run that is only planned, and the data it lacks, if any: none is prepared.

    Without its token files a model's vocabulary is the one that `prepare` is asked for.

    Raises:
        ConfigError: naming everything that is wrong with config or data.
    """
    if composed.get("resume") is not None:
        raise ConfigError(f"resume={composed.resume}: a plan is of a new run; give its overrides instead")
    _check_origin(composed)
    cfg = check(composed)
    missing = [f"{key}={path}" for key, path in token_folders(cfg.data).items() if not any(path.glob("*.bin"))]
    if not missing:
        with mistakes_of_the_user():
            return fit_to_data(cfg), []
    if cfg.model.get("vocab_size", 0) is None:
        asked = OmegaConf.select(cfg, "prepare.tokenizer.vocab_size")
        if asked is None:
            raise ConfigError(
                f"model.vocab_size=null: {missing[0]} has no token files to take it from; give a number, or prepare "
                "them first"
            )
        OmegaConf.update(cfg, "model.vocab_size", asked)
    if cfg.model.get("mask_documents") and cfg.model.get("end_of_text", 0) is None:
        OmegaConf.update(cfg, "model.end_of_text", 0)  # which one makes no difference to a plan
    return cfg, missing


def token_folders(data: DictConfig) -> dict[str, Path]:
    """The folders a data choice reads, by key; none for a loader of the user's own, which knows its data itself."""
    if data.get("paths"):
        return {f"data.paths.{name}": Path(path) for name, path in data.paths.items()}
    return {"data.path": Path(data.path)} if data.get("path") is not None else {}


def refuse_existing_run(run_dir: Path) -> None:
    """Raises ConfigError if a run is there already: a new one would mix with it."""
    if (run_dir / "metrics.jsonl").exists():
        raise ConfigError(f"hydra.run.dir={run_dir}: holds a run already; go on with resume={run_dir}, or give another")


def ensure_tokens(cfg: DictConfig, *, check_text: bool = False, prepares: bool = True) -> bool:
    """Prepares `data.path` if it is missing and `prepare` says how (and `prepares`); whether it did.

    Raises:
        ValueError: it is missing and there is no recipe, it was prepared by another one, or (`check_text`) from text
            that is another now.
    """
    if cfg.get("prepare") is None or not prepares:
        for key, path in token_folders(cfg.data).items():
            if not path.is_dir():
                others = sorted(folder.name for folder in path.parent.glob("*") if any(folder.glob("*.bin")))
                there = f"; {path.parent} has {', '.join(others)}" if others else ""
                way_out = (
                    "see `python -m lmtrain prepare --help`" if prepares else f"give the one it is in now: {key}=DIR"
                )
                raise ValueError(f"{key}={path}: no such folder{there}; {way_out}")
            if not any(path.glob("*.bin")):
                raise ValueError(f"{key}={path}: no token files (*.bin) in it; see `python -m lmtrain prepare --help`")
        return False
    from lmtrain.data.prepare import prepare
    from lmtrain.data.progress import PrepareProgress

    path = Path(cfg.data.path)
    settings: dict[str, Any] = OmegaConf.to_container(cfg.prepare)  # type: ignore[assignment]
    with PrepareProgress() as progress:
        meta, seconds = prepare(path, settings, build, progress, check_text=check_text)
    if seconds:
        counts = ", ".join(
            f"{name} {split.tokens:,} tokens of {split.documents:,} documents" for name, split in meta.splits.items()
        )
        console.print(f"prepared {path} in {duration(seconds)}: {counts}; vocabulary {meta.vocab_size:,}")
        asked = cfg.prepare.tokenizer.get("vocab_size", meta.vocab_size)
        if meta.vocab_size < asked:
            console.print(f"(the text has no more to give than that, of prepare.tokenizer.vocab_size={asked})")
    elif not check_text and OmegaConf.select(cfg, "prepare.source.files") is not None:
        _remark_on_changes(path)
    return bool(seconds)


@cache  # once a process, which may look at its data several times
def _remark_on_changes(path: Path) -> None:
    from lmtrain.data.prepare import changed_files

    if changed := changed_files(path):
        console.print(f"{path} was prepared from files that have changed since: {changed}; remove it to prepare anew")


def fit_to_data(cfg: DictConfig) -> DictConfig:
    """Fills in what the data knows: a `model.vocab_size` of null, and `model.end_of_text` where it masks documents.

    Raises:
        ValueError: a vocabulary too small, or null where the data does not say; a tokenizer that is not the one that
            the data was made with.
    """
    from lmtrain.data.tokens import check_tokenizer, read_meta

    for path in token_folders(cfg.data).values():
        meta = read_meta(path)
        check_tokenizer(path, beside=path)
        if cfg.model.get("vocab_size", 0) is None:
            if meta is None:
                raise ValueError(f"model.vocab_size=null: {path} has no meta.json to take it from; give a number")
            OmegaConf.update(cfg, "model.vocab_size", meta.vocab_size)
        elif meta and "vocab_size" in cfg.model and cfg.model.vocab_size < meta.vocab_size:
            raise ValueError(
                f"model.vocab_size={cfg.model.vocab_size}: {path} needs at least {meta.vocab_size}; null takes the "
                "data's"
            )
        if cfg.model.get("mask_documents") and cfg.model.get("end_of_text", 0) is None:
            if meta is None or meta.end_of_text is None:
                missing = "no meta.json to take it from" if meta is None else "no end-of-text id between its documents"
                raise ValueError(
                    f"model.end_of_text=null: {path} has {missing}; give a number, or model.mask_documents=false"
                )
            OmegaConf.update(cfg, "model.end_of_text", meta.end_of_text)
    return cfg
