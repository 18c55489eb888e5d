"""Holds out text for validation. Each function assigns the texts of a document to the splits."""

import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, NamedTuple

from annotated_types import Interval

from lmtrain.data.text.document import Document, utf8_bytes

Share = Annotated[float, Interval(gt=0, lt=1)]


class SplitText(NamedTuple):
    """A text, which is never empty, and its split."""

    split: str  # train or val
    text: str
    ends: bool  # the document has no more text in this split, so an end-of-text id may follow


Holdout = Callable[[Document], Iterable[SplitText]]


def by_document(document: Document, *, val_share: Share) -> Iterator[SplitText]:
    """Hold out whole documents, chosen by a hash of their text.

    So a document has the same split in every corpus, and all its copies have the same split. A document that is too
    long to be read at once is chosen by its name.

    Args:
        val_share: The share of documents to hold out, between 0 and 1.
    """
    chosen_by = document.text if document.whole else document.name
    data = chosen_by.encode(errors="surrogateescape")  # a file name need not be UTF-8
    yield SplitText("val" if uniform_hash(data) < val_share else "train", document.text, document.last)


def uniform_hash(data: bytes) -> float:
    """Return a hash of the bytes that is uniform in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) / 2**64


def tail_of_each_document(document: Document, *, val_share: Share) -> Iterator[SplitText]:
    """Hold out the end of every document. This also works for a single file.

    Args:
        val_share: The share of each document's UTF-8 bytes to hold out, between 0 and 1. A character at the cut belongs
            to the training text.
    """
    part_bytes = utf8_bytes(document.text)
    cut = int((part_bytes if document.size is None else document.size) * (1 - val_share)) - document.start
    train, val = _split_at(document.text, min(max(cut, 0), part_bytes))
    if train:
        yield SplitText("train", train, cut <= part_bytes)
    if val:
        yield SplitText("val", val, document.last)


def _split_at(text: str, byte: int) -> tuple[str, str]:
    if text.isascii():
        return text[:byte], text[byte:]
    data = text.encode()
    while byte < len(data) and data[byte] & 0xC0 == 0x80:  # in the middle of a character
        byte += 1
    return data[:byte].decode(), data[byte:].decode()


def by_name(document: Document, *, val: str | list[str]) -> Iterator[SplitText]:
    """Hold out the documents whose name, or whose file's name, matches a pattern.

    Args:
        val: One or several shell patterns, which must match the whole name. `*/val/*.txt` holds out files;
            `validation:*` holds out a dataset's own validation split.
    """
    patterns = [val] if isinstance(val, str) else val
    names = (document.name, re.sub(r":\d+$", "", document.name))
    held_out = any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)
    yield SplitText("val" if held_out else "train", document.text, document.last)
