"""The token-file format: `<split>.bin`, little-endian uint16 or uint32 and nothing else, described by `meta.json`.

A bare folder of `.bin` files without `meta.json` is read as uint16, the way nanoGPT writes it.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FORMAT_VERSION = 1
SPLITS = ("train", "val")
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}

Tokens = npt.NDArray[Any]  # of one of these types


@dataclass(frozen=True)
class Split:
    """One `<split>.bin`: its tokens, and the UTF-8 bytes of the text they stand for."""

    tokens: int
    max_id: int
    documents: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class TokenizerFile:
    """The tokenizer stored beside the tokens it made."""

    kind: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Meta:
    """`meta.json`; `recipe` is the config that the folder was prepared with."""

    dtype: str
    vocab_size: int
    tokenizer: TokenizerFile
    end_of_text: int | None
    splits: dict[str, Split]
    recipe: dict[str, Any]
    format_version: int = FORMAT_VERSION


def write_meta(folder: Path, meta: Meta) -> None:
    """Writes `meta.json`; on the disk when it returns."""
    with (folder / "meta.json").open("w") as file:
        file.write(json.dumps(asdict(meta), indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_meta(folder: Path) -> Meta | None:
    """The folder's `meta.json`; None for a bare folder.

    Raises:
        ValueError: it is not one that this version reads.
    """
    path = folder / "meta.json"
    if not path.exists():
        return None
    try:
        fields = json.loads(path.read_text())
        if fields["format_version"] != FORMAT_VERSION:
            raise ValueError(f"{path}: format version {fields['format_version']}, this lmtrain reads {FORMAT_VERSION}")
        if fields["dtype"] not in DTYPES:
            raise ValueError(f"{path}: dtype {fields['dtype']!r} is none of {', '.join(DTYPES)}")
        splits = {name: Split(**split) for name, split in fields["splits"].items()}
        return Meta(**{**fields, "tokenizer": TokenizerFile(**fields["tokenizer"]), "splits": splits})
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a meta.json of token files ({type(error).__name__}: {error})") from error


def smallest_dtype(vocab_size: int) -> str:
    """uint16 as long as every id fits."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def open_tokens(folder: Path, split: str) -> Tokens:
    """Maps `<split>.bin` into memory, read-only; O(1) in its size.

    Raises:
        ValueError: the folder or file is missing, empty, or not of the size that its dtype and `meta.json` say.
    """
    path = folder / f"{split}.bin"
    if not path.is_file():
        there = sorted(file.stem for file in folder.glob("*.bin"))
        raise ValueError(
            f"{path}: no such file; {folder} has " + (f"the splits {', '.join(there)}" if there else "no .bin")
        )
    meta = read_meta(folder)
    dtype = DTYPES[meta.dtype if meta else "uint16"]
    size = path.stat().st_size
    if size == 0 or size % dtype.itemsize:
        raise ValueError(f"{path}: {size:,} bytes is not a whole, positive number of {dtype.name} tokens")
    if meta and (split not in meta.splits or meta.splits[split].tokens * dtype.itemsize != size):
        expected = meta.splits[split].tokens if split in meta.splits else 0
        raise ValueError(
            f"{path}: holds {size // dtype.itemsize:,} tokens, but meta.json says {expected:,}; prepare it again"
        )
    tokens: Tokens = np.memmap(path, dtype=dtype, mode="r")
    return tokens


def fingerprint(folder: Path, split: str) -> str:
    """A hash that changes with the split's contents: its checksum, or its size and ends where there is none."""
    meta = read_meta(folder)
    if meta is not None:
        return meta.splits[split].sha256
    path = folder / f"{split}.bin"
    size, end = path.stat().st_size, 1 << 20
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(end))
        file.seek(max(0, size - end))
        digest.update(file.read(end))
    return digest.hexdigest()
