"""Holds out text for validation and, if asked, for a test. Each function assigns the texts of a document to splits."""

import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, NamedTuple

from annotated_types import Interval

from lmtrain.data.text.document import Document, utf8_bytes
from lmtrain.terminal.units import counted

Share = Annotated[float, Interval(gt=0, lt=1)]
TEST_SETTINGS = ("test_share", "test")  # the settings of these rules that ask for a test split
ShareOrNone = Annotated[float, Interval(ge=0, lt=1)]


class SplitText(NamedTuple):
    """A text, which is never empty, and its split."""

    split: str  # train, val or test
    text: str
    ends: bool  # the document has no more text in this split, so an end-of-text id may follow


Holdout = Callable[[Document], Iterable[SplitText]]


def by_document(document: Document, *, val_share: Share, test_share: ShareOrNone = 0.0) -> Iterator[SplitText]:
    """Hold out whole documents, chosen by a hash of their text.

    So a document has the same split in every corpus, and all its copies have the same split. A document that is too
    long to be read at once is chosen by its name. The validation documents are the same with and without a test split.

    Args:
        val_share: The share of documents to hold out for validation, between 0 and 1.
        test_share: The share of documents to hold out for a test; 0 makes no test split.
    """
    chosen_by = document.text if document.whole else document.name
    number = uniform_hash(chosen_by.encode(errors="surrogateescape"))  # a file name need not be UTF-8
    split = "val" if number < val_share else "test" if number < val_share + test_share else "train"
    yield SplitText(split, document.text, document.last)


def uniform_hash(data: bytes) -> float:
    """Return a hash of the bytes that is uniform in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) / 2**64


def tail_of_each_document(
    document: Document, *, val_share: Share, test_share: ShareOrNone = 0.0
) -> Iterator[SplitText]:
    """Hold out the end of every document. This also works for a single file.

    The order is training text, test text, validation text, so that the validation text is the same with and without a
    test split.

    Args:
        val_share: The share of each document's UTF-8 bytes to hold out for validation, between 0 and 1. A character at
            a cut belongs to the text before the cut.
        test_share: The share of each document's bytes to hold out for a test; 0 makes no test split.
    """
    size = utf8_bytes(document.text) if document.size is None else document.size
    left = document.text
    start = document.start
    for split, share_after in (("train", val_share + test_share), ("test", val_share)):
        cut = max(int(size * (1 - share_after)), 0) - start
        left_bytes = utf8_bytes(left)
        text, left = _split_at(left, min(max(cut, 0), left_bytes))
        if text:
            yield SplitText(split, text, cut <= left_bytes)
        start += utf8_bytes(text)
    if left:
        yield SplitText("val", left, document.last)


def _split_at(text: str, byte: int) -> tuple[str, str]:
    if text.isascii():
        return text[:byte], text[byte:]
    data = text.encode()
    while byte < len(data) and data[byte] & 0xC0 == 0x80:  # in the middle of a character
        byte += 1
    return data[:byte].decode(), data[byte:].decode()


def by_name(document: Document, *, val: str | list[str], test: str | list[str] | None = None) -> Iterator[SplitText]:
    """Hold out the documents whose name, or whose file's name, matches a pattern.

    Args:
        val: One or several shell patterns, which must match the whole name. `*/val/*.txt` holds out files;
            `validation:*` holds out a dataset's own validation split.
        test: The same for a test; null makes no test split. A document that also matches `val` is held out for
            validation.
    """
    names = (document.name, re.sub(r":\d+$", "", document.name))
    split = "val" if _match(names, val) else "test" if test is not None and _match(names, test) else "train"
    yield SplitText(split, document.text, document.last)


def _match(names: Iterable[str], patterns: str | list[str]) -> bool:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def asks_for_test(holdout: Holdout) -> bool:
    """Return whether a rule with its settings, a `functools.partial`, asks for a test split."""
    settings = getattr(holdout, "keywords", {})
    return any(settings.get(key) for key in TEST_SETTINGS)


def check_split_sizes(tokens: Mapping[str, int]) -> None:
    """Raise ValueError if a split has too few tokens for a loss."""
    for split, count in tokens.items():
        if count < 2 and split == "train":
            raise ValueError(
                f"prepare.holdout: only {counted(count, 'token')} are left for the train split; hold out less"
            )
        if count < 2:
            part = f"prepare.holdout.{'test' if split == 'test' else 'val'}"
            raise ValueError(
                f"prepare.holdout: the {split} split has only {counted(count, 'token')}; hold out another "
                f"share ({part}_share), other names ({part}) or the tail of each document (prepare/holdout=tail)"
            )
