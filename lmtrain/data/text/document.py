"""Documents of text, and how a long one is cut without changing its tokens."""

import codecs
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

PART_BYTES = 1 << 20  # the most text in memory at once (a str may need four times as much); longer documents are split
CUT_CHARS = 1 << 18  # the end of a part; the cut is somewhere in its last half

_LINE_END = re.compile(r"(?<=[^\W_])[\r\n]")  # after a letter or digit, because punctuation joins with newlines
_SPACE = re.compile(r"(?<=\S)[^\S\r\n\x1c-\x1f]")  # the patterns don't treat the last four as whitespace
_CUTS = _LINE_END, _SPACE, re.compile(r"\s")
_WINDOW = 1 << 16  # characters searched at once


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or one part of a text that is too long for the memory."""

    name: str  # unique in its source: "books/a.txt", "books/a.txt:3", "train:12"
    text: str
    start: int = 0  # UTF-8 bytes of the document before this part
    size: int | None = None  # UTF-8 bytes of the whole document; None: `text` is all of it

    @property
    def whole(self) -> bool:
        return self.size is None

    @property
    def last(self) -> bool:
        """Return whether the document ends with this part."""
        return self.size is None or self.start + utf8_bytes(self.text) == self.size


def document_parts(
    name: str, size: int, read: Callable[[int, int], bytes], start: int, part_bytes: int
) -> Iterator[tuple[Document, int]]:
    """Yield a document of more than `part_bytes` from byte `start` on in parts, and after each part its end in bytes.

    `read(start, end)` returns bytes of the document. A part ends at a place that no token crosses. The place depends
    only on the text, so a reader that begins at the end of a part gets the same following parts.
    """
    while start < size:
        end = min(start + part_bytes, size)
        text, used = codecs.utf_8_decode(read(start, end), "strict", end == size)
        if end < size:
            last = len(text) - 1  # a cut depends on the character after it
            begin = max(0, last - CUT_CHARS)
            cut = cut_position(text, last - begin, begin)
            used -= utf8_bytes(text[cut:])
            text = text[:cut]
        yield Document(name, text, start, size), start + used
        start += used


def text_parts(name: str, text: str, start: int, part_bytes: int) -> Iterator[tuple[Document, int]]:
    """Yield a text that is in memory like `document_parts`, but as a single whole if it is no longer than a part."""
    data = text.encode() if 4 * len(text) > part_bytes else b""  # a character has at most 4 bytes
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

    If the rest of the text fits, this is its end. Otherwise it is the last place, in the second half of the piece,
    before a newline that follows a letter or digit; or, without one, before a space that does not follow a space. The
    patterns of GPT-2 and of tiktoken's encodings always cut there, so the ids of the pieces are the ids of the text.
    Without such a place the cut is before any whitespace, or at the limit, and a few ids may differ.
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
