"""Where a long text can be cut without changing its tokens."""

import re
from collections.abc import Iterator

_LINE_END = re.compile(r"(?<=[^\W_])[\r\n]")  # after a letter or digit: punctuation takes newlines with it
_SPACE = re.compile(r"(?<=\S)[^\S\r\n\x1c-\x1f]")  # to the patterns, the last four are no whitespace
_CUTS = _LINE_END, _SPACE, re.compile(r"\s")
_WINDOW = 1 << 16  # characters searched at once


def cut_before(text: str, limit: int, start: int = 0) -> int:
    """Where to end a piece of at most `limit` characters that begins at `start`; the end of the text if that fits.

    It is the last place in the last half before a newline that follows a letter or digit, or else before a space that
    follows none. There the patterns of GPT-2 and of tiktoken's encodings always cut and never look across, so the
    pieces' ids are the text's. Without such a place it is before any whitespace, or anywhere: a few ids may differ.
    """
    if len(text) - start <= limit:
        return len(text)
    first, last = start + max(1, limit // 2), start + limit
    for pattern in _CUTS:
        for end in range(last, first - 1, -_WINDOW):
            if found := list(pattern.finditer(text, max(first, end - _WINDOW + 1), end + 1)):
                return found[-1].start()
    return last


def pieces(text: str, limit: int) -> Iterator[str]:
    """The text in pieces of at most `limit` characters."""
    start = 0
    while start < len(text):
        cut = cut_before(text, limit, start)
        yield text[start:cut]
        start = cut
