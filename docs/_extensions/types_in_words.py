"""Says in words what values a parameter takes, from its annotation."""

import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from annotated_types import Ge, Gt, Interval, Le, Lt

NAMES = {int: "whole number", float: "number", str: "text", type(None): "`null`"}


def in_words(annotation: Any) -> str:
    """Return what values an annotation allows; an empty text where it allows anything, or says nothing."""
    words = list(dict.fromkeys(_alternatives(annotation)))
    words.sort(key=lambda word: word == NAMES[type(None)])
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _alternatives(annotation: Any) -> Iterator[str]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in NAMES:
        yield NAMES[annotation]
    elif annotation is bool:
        yield from ("`true`", "`false`")
    elif origin is typing.Annotated:
        yield _limited(in_words(arguments[0]), arguments[1:])
    elif origin is typing.Literal:
        yield from (f"`{value}`" for value in arguments)
    elif origin in (typing.Union, types.UnionType):
        for part in arguments:
            yield from _alternatives(part)
    elif origin is tuple:
        yield f"list of {len(arguments)} {_plural(arguments[0])}"
    elif origin in (list, Sequence):
        yield " of ".join(filter(None, ["list", _plural(arguments[0])]))
    elif origin in (dict, Mapping):
        yield " of names to ".join(filter(None, ["mapping", _plural(arguments[1])]))
    elif origin is Callable:
        yield "a part with a `_target_`"


def _plural(annotation: Any) -> str:
    plurals = {"whole number": "whole numbers", "number": "numbers", "text": "texts", "list": "lists"}
    found = []
    for word in _alternatives(annotation):
        first = next((name for name in plurals if word.startswith(name)), "")
        found.append(plurals.get(first, "") + word.removeprefix(first))
    return " or ".join(found)


def _limited(words: str, limits: Sequence[Any]) -> str:
    """Return the words with the limits of pydantic and annotated-types."""
    bounds = []
    for limit in limits:
        for single in limit if isinstance(limit, Interval) else [limit]:
            match single:
                case Gt(gt=value):
                    bounds.append(f"above {value}")
                case Ge(ge=value):
                    bounds.append(f"at least {value}")
                case Lt(lt=value):
                    bounds.append(f"below {_power(value)}")
                case Le(le=value):
                    bounds.append(f"at most {value}")
        if pattern := getattr(limit, "pattern", None):
            bounds.append(f"that matches `{pattern}`")
    if words == NAMES[int] and bounds == ["above 0"]:
        bounds = ["at least 1"]
    return " ".join(filter(None, [words, " and ".join(bounds)]))


def _power(value: Any) -> str:
    power = value.bit_length() - 1 if isinstance(value, int) else 0
    return f"2^{power}" if power > 30 and value == 1 << power else str(value)
