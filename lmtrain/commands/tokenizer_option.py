"""The option `--tokenizer`, for a run whose data had none."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmtrain.config.build import raising_config_errors
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE
from lmtrain.errors import ConfigError

if TYPE_CHECKING:
    from lmtrain.data.stored_tokenizer import StoredTokenizer
    from lmtrain.run.reading.loaded import LoadedModel


def add_tokenizer_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="tokenizer for a run that has none: a tokenizer.json, nanoGPT's meta.pkl, or a folder with either file",
    )


def with_tokenizer(loaded: "LoadedModel", given: Path | None) -> "LoadedModel":
    """Return a model with the run's own tokenizer, or with the given one if the run has none.

    Raises:
        ConfigError: There are two tokenizers, or the given one can't be read or has more ids than the model.
    """
    if given is None:
        return loaded
    if loaded.tokenizer is not None:
        raise ConfigError(
            f"--tokenizer {given}: {loaded.directory} has its own ({TOKENIZER_FILE}); leave the option out"
        )
    with raising_config_errors():
        tokenizer = _read_tokenizer(given)
    known = loaded.config.model.get("vocab_size")
    if known is not None and tokenizer.vocab_size > known:
        raise ConfigError(
            f"--tokenizer {given}: has {tokenizer.vocab_size:,} ids, but the model of {loaded.directory} has only "
            f"{known:,}; give the tokenizer that the run's data was made with"
        )
    return replace(loaded, tokenizer=tokenizer)


def _read_tokenizer(path: Path) -> "StoredTokenizer":
    """Return the tokenizer in a file or folder; raise ValueError if it is missing or damaged."""
    from lmtrain.convert.nanogpt.characters import CHARACTERS_FILE, read_characters
    from lmtrain.data.stored_tokenizer import load_tokenizer

    inside = next((path / name for name in (TOKENIZER_FILE, CHARACTERS_FILE) if (path / name).is_file()), None)
    if (file := inside or path).is_dir():
        raise ValueError(f"--tokenizer {path}: the folder has no {TOKENIZER_FILE} and no {CHARACTERS_FILE}")
    if not file.is_file():
        raise ValueError(f"--tokenizer {path}: no such file or folder")
    return read_characters(file) if file.suffix == ".pkl" else load_tokenizer(file.parent, file.name)
