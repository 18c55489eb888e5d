"""Keeps the tokenizer of a run's data in its directory."""

from pathlib import Path

from omegaconf import DictConfig

from lmtrain.config.token_files import token_folders
from lmtrain.data.stored_tokenizer import (
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    StoredTokenizer,
    copy_tokenizer,
    load_tokenizer,
)
from lmtrain.files.links import refuse_links
from lmtrain.run.directory import RunDirectory


def keep_tokenizer(cfg: DictConfig, directory: RunDirectory, origin: Path | None) -> StoredTokenizer | None:
    """Copy the data's tokenizer into the run directory and return it, so that sampling needs nothing else.

    If the data has no tokenizer, an imported run may have its own, and a fork copies the one of its origin. Return None
    if there is none.
    """
    source = next(iter(token_folders(cfg.data).values()), None)
    copied = source is not None and copy_tokenizer(source, directory.path)
    if not copied and origin is not None:
        refuse_links(origin, (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE))
        copy_tokenizer(origin, directory.path)
    return load_tokenizer(directory.path) if (directory.path / TOKENIZER_FILE).is_file() else None
