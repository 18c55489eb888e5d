"""Finds the token files of a config, prepares missing ones, and fills in config values that depend on the data."""

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmtrain.config.build import build
from lmtrain.terminal.console import console
from lmtrain.terminal.units import counted, duration, percent

# Warn if more than this share of the text has no tokens; the bits per byte of two tokenizers rarely differ by less.
REMARKABLE_LOSS = 0.001


def token_folders(data: DictConfig) -> dict[str, Path]:
    """Return the folders that a data choice reads, by config key; empty for a loader without `path` or `paths`."""
    if data.get("paths"):
        return {f"data.paths.{name}": Path(path) for name, path in data.paths.items()}
    return {"data.path": Path(data.path)} if data.get("path") is not None else {}


def ensure_tokens(cfg: DictConfig, *, check_text: bool = False, prepares: bool = True) -> bool:
    """Prepare `data.path` if it is missing and the config has a recipe; return whether it was prepared.

    Args:
        cfg: The config; `cfg.prepare` is the recipe, or null.
        check_text: Also check that the source text has not changed since the preparation.
        prepares: False to only check that the token files exist.

    Raises:
        ValueError: The folder is missing and there is no recipe, it was prepared with another recipe, or (with
            `check_text`) the text has changed.
    """
    if cfg.get("prepare") is None or not prepares:
        for key, path in token_folders(cfg.data).items():
            if not path.is_dir():
                others = sorted(folder.name for folder in path.parent.glob("*") if any(folder.glob("*.bin")))
                there = f"; {path.parent} has {', '.join(others)}" if others else ""
                way_out = (
                    "see `python -m lmtrain prepare --help`" if prepares else f"if it has moved, give {key}=NEW_DIR"
                )
                raise ValueError(f"{key}={path}: no such folder{there}; {way_out}")
            if not any(file.suffix == ".bin" for file in path.iterdir()):
                raise ValueError(f"{key}={path}: no token files (*.bin) in it; see `python -m lmtrain prepare --help`")
        return False
    from lmtrain.data.prepare import prepare
    from lmtrain.data.progress import DataProgress

    path = Path(cfg.data.path)
    settings: dict[str, Any] = OmegaConf.to_container(cfg.prepare)  # type: ignore[assignment]
    with DataProgress() as progress:
        meta, seconds = prepare(path, settings, build, progress, check_text=check_text)
    if seconds:
        counts = ", ".join(
            f"{name} {counted(split.tokens, 'token')} in {counted(split.documents, 'document')}"
            for name, split in meta.splits.items()
        )
        console.print(f"prepared {path} in {duration(seconds)}: {counts}; vocabulary {meta.vocab_size:,}")
        if any(split.lost_share > REMARKABLE_LOSS for split in meta.splits.values()):
            shares = ", ".join(f"{name} {percent(split.lost_share)}" for name, split in meta.splits.items())
            console.print(
                f"warning: the tokenizer has no tokens for some of the text ({shares}); this text is dropped or "
                "becomes the unknown token, and bits per byte count only the rest",
                style="yellow",
            )
        asked = cfg.prepare.tokenizer.get("vocab_size", meta.vocab_size)
        if meta.vocab_size < asked:
            console.print(
                f"(prepare.tokenizer.vocab_size={asked} was not reached: the text does not yield more tokens)"
            )
    elif not check_text and OmegaConf.select(cfg, "prepare.source.files") is not None:
        _remark_on_changes(path)
    return bool(seconds)


@cache  # one message per process, even if it checks its data several times
def _remark_on_changes(path: Path) -> None:
    from lmtrain.data.text.inputs import changed_inputs

    if changed := changed_inputs(path):
        console.print(
            f"{path} was prepared from files that have changed since: {changed}; remove the folder to prepare it again"
        )


def fill_in_from_data(cfg: DictConfig) -> DictConfig:
    """Fill in from the data a `model.vocab_size` of null, and `model.end_of_text` if the model masks documents.

    Raises:
        ValueError: The vocabulary is too small, a value is null but the data does not have it, or the tokenizer is not
            the one that the data was made with.
    """
    from lmtrain.data.meta import check_tokenizer, read_meta

    for path in token_folders(cfg.data).values():
        meta = read_meta(path)
        check_tokenizer(path, beside=path)
        if cfg.model.get("vocab_size", 0) is None:
            if meta is None:
                raise ValueError(f"model.vocab_size=null: {path} has no meta.json to take it from; give a number")
            OmegaConf.update(cfg, "model.vocab_size", meta.vocab_size)
        elif meta and "vocab_size" in cfg.model and cfg.model.vocab_size < meta.vocab_size:
            raise ValueError(
                f"model.vocab_size={cfg.model.vocab_size}: {path} needs at least {meta.vocab_size}; null uses the "
                "data's vocabulary size"
            )
        if cfg.model.get("mask_documents") and cfg.model.get("end_of_text", 0) is None:
            if meta is None or meta.end_of_text is None:
                missing = "no meta.json to take it from" if meta is None else "no end-of-text id between its documents"
                raise ValueError(
                    f"model.end_of_text=null: {path} has {missing}; give a number, or model.mask_documents=false"
                )
            OmegaConf.update(cfg, "model.end_of_text", meta.end_of_text)
    return cfg
