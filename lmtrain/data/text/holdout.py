"""What is held out for validation: each choice says which texts of a document go to which split."""

import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, NamedTuple

from annotated_types import Interval

from lmtrain.data.text.document import Document, utf8_bytes

Share = Annotated[float, Interval(gt=0, lt=1)]


class SplitText(NamedTuple):
    """A text, never empty, and the split it goes to."""

    split: str  # train or val
    text: str
    ends: bool  # the document has no more text in that split, so an end-of-text id may follow


Holdout = Callable[[Document], Iterable[SplitText]]


def by_document(document: Document, *, val_share: Share) -> Iterator[SplitText]:
    """Hold out whole documents, chosen by a hash of their text: the same ones in any corpus, and all copies of one.

    A document that comes in parts is chosen by its name.
    """
    chosen_by = document.text if document.whole else document.name
    data = chosen_by.encode(errors="surrogateescape")  # a file's name may be no UTF-8
    yield SplitText("val" if uniform_hash(data) < val_share else "train", document.text, document.last)


def uniform_hash(data: bytes) -> float:
    """Return a hash of the bytes that is uniform in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) / 2**64


def tail_of_each_document(document: Document, *, val_share: Share) -> Iterator[SplitText]:
    """Hold out the last share of every document's UTF-8 bytes; works for a single file as well.

    The character that the cut falls into is the last one of the training text.
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
    while byte < len(data) and data[byte] & 0xC0 == 0x80:  # within a character
        byte += 1
    return data[:byte].decode(), data[byte:].decode()


def by_name(document: Document, *, val: str | list[str]) -> Iterator[SplitText]:
    """Hold out the documents whose name, or whose file's name, one of the patterns matches as a whole.

    "*/val/*.txt" holds out files, in one document or many; "validation:*" a dataset's own split.
    """
    patterns = [val] if isinstance(val, str) else val
    names = (document.name, re.sub(r":\d+$", "", document.name))
    held_out = any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)
    yield SplitText("val" if held_out else "train", document.text, document.last)
