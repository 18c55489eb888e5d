"""A document of text, and where a long one can be cut without changing its tokens."""

import codecs
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

PART_BYTES = 1 << 20  # of text held at once, up to four times as much as a str; a longer document comes in parts
CUT_CHARS = 1 << 18  # of a part's end; in the last half of them is the place to cut

_LINE_END = re.compile(r"(?<=[^\W_])[\r\n]")  # after a letter or digit: punctuation takes newlines with it
_SPACE = re.compile(r"(?<=\S)[^\S\r\n\x1c-\x1f]")  # to the patterns, the last four are no whitespace
_CUTS = _LINE_END, _SPACE, re.compile(r"\s")
_WINDOW = 1 << 16  # characters searched at once


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or one part of a text that is too long to be held in memory whole."""

    name: str  # tells it apart: "books/a.txt", "books/a.txt:3", "train:12"
    text: str
    start: int = 0  # UTF-8 bytes of the document before this part
    size: int | None = None  # UTF-8 bytes of the whole document; None: `text` is all of it

    @property
    def whole(self) -> bool:
        return self.size is None

    @property
    def last(self) -> bool:
        """Whether the document ends with this part."""
        return self.size is None or self.start + utf8_bytes(self.text) == self.size


def document_parts(
    name: str, size: int, read: Callable[[int, int], bytes], start: int, part_bytes: int
) -> Iterator[tuple[Document, int]]:
    """Yield a document of more than `part_bytes` from byte `start` on, in parts, with the byte after each part.

    `read(start, end)` gives bytes of it. A part ends where the tokenizer would not look across. That depends on the
    text alone, so whoever begins where a part ended gets the same parts.
    """
    while start < size:
        end = min(start + part_bytes, size)
        text, used = codecs.utf_8_decode(read(start, end), "strict", end == size)
        if end < size:
            last = len(text) - 1  # a cut needs the character after it
            begin = max(0, last - CUT_CHARS)
            cut = cut_position(text, last - begin, begin)
            used -= utf8_bytes(text[cut:])
            text = text[:cut]
        yield Document(name, text, start, size), start + used
        start += used


def text_parts(name: str, text: str, start: int, part_bytes: int) -> Iterator[tuple[Document, int]]:
    """Yield a text that is in memory as `document_parts` does: whole if it is no longer than a part."""
    data = text.encode() if 4 * len(text) > part_bytes else b""  # no character has more bytes
    if len(data) > part_bytes:
        yield from document_parts(name, len(data), lambda first, end: data[first:end], start, part_bytes)
    else:
        yield Document(name, text), utf8_bytes(text)


def cut_text(text: str, limit: int) -> Iterator[str]:
    """Yield the text in pieces of at most `limit` characters."""
    start = 0
    while start < len(text):
        cut = cut_position(text, limit, start)
        yield text[start:cut]
        start = cut


def cut_position(text: str, limit: int, start: int = 0) -> int:
    """Return where to end a piece of at most `limit` characters that begins at `start`.

    It is the end of the text if that fits. Else it is the last place in the last half before a newline that follows a
    letter or digit, or else before a space that follows none. There the patterns of GPT-2 and of tiktoken's encodings
    always cut and never look across, so the pieces' ids are the text's. Without such a place it is before any
    whitespace, or anywhere: a few ids may differ.
    """
    if len(text) - start <= limit:
        return len(text)
    first, last = start + max(1, limit // 2), start + limit
    for pattern in _CUTS:
        for end in range(last, first - 1, -_WINDOW):
            if found := list(pattern.finditer(text, max(first, end - _WINDOW + 1), end + 1)):
                return found[-1].start()
    return last


def utf8_bytes(text: str) -> int:
    """Return the size of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
