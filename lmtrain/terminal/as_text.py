"""Values, lists of them, and what changed between two of them, as text for a person."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

SHOWN_CHARS = 200
# What acts on a terminal, apart from line ends and tabs: control characters, those that turn the direction of what
# follows, and halves of characters, which no encoding has.
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Return the text with `\\x1b` for the escape character, and so on for all that acts; line ends and tabs stay."""
    return ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable(text: str, *, keep: str = "", instead: str = " ") -> str:
    """Return the text without what moves a terminal's cursor or changes its colors, apart from `keep`."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() or character in keep else instead for character in text)


def shown(text: str) -> str:
    """Return a stranger's text for a message: cut, and without what would steer a terminal."""
    text = printable(text)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


def as_written(value: Any) -> str:
    """Return a value as YAML and overrides have it: `null`, `true`, `0.001`."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def rounded(value: Any) -> str:
    """Return a value as `as_written` does, but on one line, and its numbers with six digits that count."""
    match value:
        case float():
            return f"{value:g}"
        case list():
            return printable(f"[{','.join(map(rounded, value))}]")
    return printable(as_written(value))


def first_few(items: Iterable[object], most: int = 3, *, separator: str = ", ") -> str:
    """Return the first items, and how many more there are: `a, b, c and 1,234 more`."""
    names = [str(item) for item in items]
    return separator.join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return `key: old → new` for every value in which two nested containers differ; a missing one counts as null."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = dict.fromkeys([*old, *new])
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    # As JSON, since that is how one of them may have been kept: a tuple is a list there.
    return [] if json.dumps(old) == json.dumps(new) else [f"{path}: {as_written(old)} → {as_written(new)}"]
