"""The token files that a config reads: found, prepared where they are missing, and what they fill in."""

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmtrain.config.build import build
from lmtrain.terminal.console import console
from lmtrain.terminal.units import duration, percent

REMARKABLE_LOSS = 0.001  # of the text; bits per byte of two tokenizers rarely differ by less


def token_folders(data: DictConfig) -> dict[str, Path]:
    """Return the folders that a data choice reads, by key; none for a user's own loader, which knows its data."""
    if data.get("paths"):
        return {f"data.paths.{name}": Path(path) for name, path in data.paths.items()}
    return {"data.path": Path(data.path)} if data.get("path") is not None else {}


def ensure_tokens(cfg: DictConfig, *, check_text: bool = False, prepares: bool = True) -> bool:
    """Prepare `data.path` if it is missing, `prepare` says how, and `prepares`; return whether it was prepared.

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
            f"{name} {split.tokens:,} tokens of {split.documents:,} documents" for name, split in meta.splits.items()
        )
        console.print(f"prepared {path} in {duration(seconds)}: {counts}; vocabulary {meta.vocab_size:,}")
        if any(split.lost_share > REMARKABLE_LOSS for split in meta.splits.values()):
            shares = ", ".join(f"{name} {percent(split.lost_share)}" for name, split in meta.splits.items())
            console.print(
                f"warning: the tokenizer has no tokens for some of the text ({shares}), which is dropped or unknown; "
                "bits per byte count the rest",
                style="yellow",
            )
        asked = cfg.prepare.tokenizer.get("vocab_size", meta.vocab_size)
        if meta.vocab_size < asked:
            console.print(f"(the text has no more to give than that, of prepare.tokenizer.vocab_size={asked})")
    elif not check_text and OmegaConf.select(cfg, "prepare.source.files") is not None:
        _remark_on_changes(path)
    return bool(seconds)


@cache  # once a process, which may look at its data several times
def _remark_on_changes(path: Path) -> None:
    from lmtrain.data.text.inputs import changed_inputs

    if changed := changed_inputs(path):
        console.print(f"{path} was prepared from files that have changed since: {changed}; remove it to prepare anew")


def fill_in_from_data(cfg: DictConfig) -> DictConfig:
    """Fill in what the data knows: a `model.vocab_size` of null, and `model.end_of_text` where it masks documents.

    Raises:
        ValueError: a vocabulary too small, or null where the data does not say; a tokenizer that is not the one that
            the data was made with.
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
