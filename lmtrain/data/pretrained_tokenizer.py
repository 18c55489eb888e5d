"""Finds the `tokenizer.json` of a path or of a name on the Hugging Face hub."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmtrain.data.stored_tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from lmtrain.machine import is_installed

# All files that a tokenizer may consist of, and no weights.
_HUB_FILES = [TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, "special_tokens_map.json", "added_tokens.json", "config.json"]
_SLOW_FILES = ["*.model", "vocab*", "merges.txt", "*.tiktoken"]  # files that can be converted to a tokenizer.json

# transformers imports torch, so it runs in another process.
_CONVERT = """
import sys
from transformers import AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
"""


@contextmanager
def find_tokenizer_file(path: str) -> Iterator[Path]:
    """Yield the file, in a folder with the tokenizer's settings. It may be deleted when the context ends.

    Raises:
        ValueError: there is no such file, and it can't be fetched or made.
    """
    here = Path(path).expanduser()
    if here.is_file():
        yield here
        return
    folder = here if here.is_dir() else _fetched(path)
    if (folder / TOKENIZER_FILE).is_file():
        yield folder / TOKENIZER_FILE
        return
    if not any(file for pattern in _SLOW_FILES for file in folder.glob(pattern)):
        raise ValueError(f"has no {TOKENIZER_FILE}, and no files to make one from")
    with tempfile.TemporaryDirectory() as made:
        _convert(folder, Path(made))
        yield Path(made) / TOKENIZER_FILE


def _fetched(name: str) -> Path:
    """Download the tokenizer's files from the hub, unless they are cached; return their folder."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*_HUB_FILES, *_SLOW_FILES]))
    except Exception as error:  # many types: no network, no such name, no access, an invalid name
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"no such file or folder in {Path.cwd()}, and not available from the Hugging Face hub ({reason[0]})"
        ) from error


def _convert(folder: Path, into: Path) -> None:
    if not is_installed("transformers"):
        raise ValueError(
            f"has no {TOKENIZER_FILE}, and making one needs the transformers package: "
            "pip install 'lmtrain[transformers]'"
        )
    done = subprocess.run(
        [sys.executable, "-c", _CONVERT, folder.absolute(), into],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode or not (into / TOKENIZER_FILE).is_file():
        reason = done.stderr.strip().splitlines() or ["it has no fast tokenizer of this kind"]
        raise ValueError(f"has no {TOKENIZER_FILE}, and transformers could not make one ({reason[-1]})")
