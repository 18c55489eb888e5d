"""Formats values, lists and differences between values as text for people."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

SHOWN_CHARS = 200
# Characters that act on a terminal, except line ends and tabs: control characters, characters that change the text
# direction, and lone surrogates, which cannot be encoded.
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Return the text with control characters spelled out, such as `\\x1b` for escape; line ends and tabs stay."""
    return ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable(text: str, *, keep: str = "", instead: str = " ") -> str:
    """Return the text with all unprintable characters replaced by `instead`, except those in `keep`."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() or character in keep else instead for character in text)


def shown(text: str) -> str:
    """Return untrusted text for a message: shortened, and without characters that act on a terminal."""
    text = printable(text)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


def as_written(value: Any) -> str:
    """Return a value as it is written in YAML and overrides: `null`, `true`, `0.001`."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def rounded(value: Any) -> str:
    """Return a value as `as_written` does, but on one line and with numbers rounded to six significant digits."""
    match value:
        case float():
            return f"{value:g}"
        case list():
            return printable(f"[{','.join(map(rounded, value))}]")
    return printable(as_written(value))


def first_few(items: Iterable[object], most: int = 3, *, separator: str = ", ") -> str:
    """Return the first items and the number of the others: `a, b, c and 1,234 more`."""
    names = [str(item) for item in items]
    return separator.join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return `key: old → new` for every value that differs between two nested containers; a missing value is null."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = dict.fromkeys([*old, *new])
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    # Compared as JSON, because one of them may have been read from JSON, where a tuple is a list.
    return [] if json.dumps(old) == json.dumps(new) else [f"{path}: {as_written(old)} → {as_written(new)}"]
