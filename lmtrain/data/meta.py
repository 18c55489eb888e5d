"""`meta.json` and the token-file format: little-endian uint16 or uint32 and nothing else.

`token_files.py` reads the tokens. It also reads files that other programs write without a `meta.json`.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmtrain.errors import DataError
from lmtrain.files.durable import sha256_of, write_atomically
from lmtrain.files.limited import read_json_limited

FORMAT_VERSION = 1
MAX_JSON_BYTES = 64 << 20  # limit for a JSON file beside tokens; a list of 100,000 shards has 12 MB
MAX_VOCAB_SIZE = 1 << 32
SPLITS = ("train", "val", "test")  # every token folder that lmtrain makes has the first two
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}

Tokens = npt.NDArray[Any]  # the element type is one of DTYPES


@dataclass(frozen=True)
class Shard:
    """One file of a split."""

    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The numbers of a split's tokens and documents, and the UTF-8 bytes of its text.

    The tokens are in `<split>.bin`, or in `shards`; then `sha256` is the checksum of all shards, one after the other.
    `lost_share` is the share of `checked_bytes` for which the tokenizer has no token. Both are 0 if the tokenizer can
    represent every text. `text_sha256` identifies the text, whichever tokenizer encoded it: a hash of the hashes of its
    pieces, in order. It is empty if the tokens were made without it.
    """

    tokens: int
    max_id: int
    documents: int
    bytes: int
    sha256: str
    shards: tuple[Shard, ...] = ()
    checked_bytes: int = 0
    lost_share: float = 0.0
    text_sha256: str = ""

    @property
    def lost_bytes(self) -> int:
        """Return how many of the checked bytes have no token."""
        return round(self.lost_share * self.checked_bytes)

    @property
    def kept_bytes(self) -> float:
        """Return the UTF-8 bytes of the text without the lost share."""
        return self.bytes * (1 - self.lost_share)


@dataclass(frozen=True)
class TokenizerFile:
    """The tokenizer file that is stored beside its tokens."""

    kind: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Meta:
    """The contents of `meta.json`; `recipe` is the config that the folder was prepared with."""

    dtype: str
    vocab_size: int
    tokenizer: TokenizerFile
    end_of_text: int | None
    splits: dict[str, Split]
    recipe: dict[str, Any]
    format_version: int = FORMAT_VERSION

    def files(self, split: str) -> tuple[Shard, ...]:
        """Return the files of a split, in order."""
        found = self.splits[split]
        return found.shards or (Shard(f"{split}.bin", found.tokens, found.sha256),)


def write_meta(folder: Path, meta: Meta) -> None:
    """Write `meta.json`; it is on the disk when this returns."""
    write_atomically(folder / "meta.json", json.dumps(asdict(meta), indent=2) + "\n")


def read_meta(folder: Path) -> Meta | None:
    """Return the contents of a folder's `meta.json`; None for a folder without one.

    Raises:
        DataError: this version can't read the file.
    """
    path = folder / "meta.json"
    if not os.path.lexists(path):
        return None
    try:
        fields = read_json_limited(path, MAX_JSON_BYTES)
        if fields["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"{path}: has format version {fields['format_version']}, but this lmtrain reads {FORMAT_VERSION}"
            )
        if fields["dtype"] not in DTYPES:
            raise DataError(f"{path}: dtype {fields['dtype']!r} is not one of {', '.join(DTYPES)}")
        splits = {name: _split(split) for name, split in fields["splits"].items()}
        meta = Meta(**{**fields, "tokenizer": TokenizerFile(**fields["tokenizer"]), "splits": splits})
        _check_names(meta)
        _check_types(meta)
        _check_sizes(meta)
    except DataError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise DataError(f"{path}: not a meta.json of token files ({type(error).__name__}: {error})") from error
    return meta


def _check_names(meta: Meta) -> None:
    """Raise a ValueError if it names a file outside the folder. The named files are read, hashed and displayed."""
    shards = [shard.file for split in meta.splits.values() for shard in split.shards]
    for name in [*meta.splits, *shards, *([meta.tokenizer.file] if meta.tokenizer.file else [])]:
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"names {name!r}, which is not a file inside the folder")


def _check_types(meta: Meta) -> None:
    """Raise a TypeError if a number or checksum has the wrong type, which would fail later without a clear message."""
    shards = [shard for split in meta.splits.values() for shard in split.shards]
    counts: list[Any] = [meta.vocab_size, 0 if meta.end_of_text is None else meta.end_of_text]
    counts += [shard.tokens for shard in shards]
    sums: list[Any] = [meta.tokenizer.sha256, *(shard.sha256 for shard in shards)]
    for split in meta.splits.values():
        counts += [split.tokens, split.max_id, split.documents, split.bytes, split.checked_bytes]
        if not 0 <= split.lost_share <= 1:
            raise ValueError(f"lost_share {split.lost_share!r} is not between 0 and 1")
        sums += [split.sha256, split.text_sha256]
    if wrong := [count for count in counts if type(count) is not int or not 0 <= count < 1 << 63]:
        raise TypeError(f"{wrong[0]!r} is not a whole number from 0 to 2^63 - 1")
    if wrong := [checksum for checksum in sums if not isinstance(checksum, str)]:
        raise TypeError(f"{wrong[0]!r} is not a checksum")
    if not isinstance(meta.recipe, dict):
        raise TypeError(f"recipe {meta.recipe!r} is not an object")


def _check_sizes(meta: Meta) -> None:
    """Raise a ValueError if the vocabulary is too large for ids, or the shards do not add up to their split.

    The sizes of the files themselves are checked when the files are opened.
    """
    if not 1 <= meta.vocab_size <= MAX_VOCAB_SIZE:
        raise ValueError(f"vocab_size {meta.vocab_size:,} is not from 1 to {MAX_VOCAB_SIZE:,}")
    for name, split in meta.splits.items():
        if split.shards and sum(shard.tokens for shard in split.shards) != split.tokens:
            raise ValueError(f"{name} has {split.tokens:,} tokens, but its shards add up to another number")


def text_facts(metas: Sequence[Meta | None], split: str) -> dict[str, Any]:
    """Describe the text of a split of several folders, and its tokenizer; null for what a folder does not record.

    `text` is equal for the same text, whichever tokenizer has encoded it.
    """
    known = [meta for meta in metas if meta]
    if not known or len(known) < len(metas):
        return dict.fromkeys(("text", "text_bytes", "tokenizer", "vocab_size"))
    texts = sorted(meta.splits[split].text_sha256 for meta in known)
    together = texts[0] if len(texts) == 1 else hashlib.sha256("".join(texts).encode()).hexdigest()
    tokenizer = known[0].tokenizer
    return {
        "text": together if all(texts) else None,
        "text_bytes": sum(meta.splits[split].bytes for meta in known),
        "tokenizer": {"kind": tokenizer.kind, "sha256": tokenizer.sha256},
        "vocab_size": max(meta.vocab_size for meta in known),
    }


def check_tokenizer(tokens: Path, beside: Path) -> None:
    """Check that the tokenizer in the folder `beside` is the one that made the tokens in the folder `tokens`.

    Does nothing if `beside` has no tokenizer or `tokens` has no `meta.json`.

    Raises:
        DataError: it is a different tokenizer.
    """
    meta = read_meta(tokens)
    path = beside / (meta.tokenizer.file if meta else "")
    if meta and path.is_file() and sha256_of(path) != meta.tokenizer.sha256:
        raise DataError(f"{path}: not the tokenizer that {tokens} was made with, so its ids would mean other text")


def _split(fields: dict[str, Any]) -> Split:
    return Split(**{**fields, "shards": tuple(Shard(**shard) for shard in fields.get("shards", ()))})


def smallest_dtype(vocab_size: int) -> str:
    """Return uint16 if every id fits in it, otherwise uint32."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"
