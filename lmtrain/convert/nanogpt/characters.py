"""Reads the characters in nanoGPT's `meta.pkl` without unpickling it, so that nothing in the file is called.

Only the pickle instructions for dicts, lists, text and small integers are supported, which is all that nanoGPT's
`prepare.py` writes. Any other instruction, and above all one that names a function, is refused.
"""

import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lmtrain.data.stored_tokenizer import StoredTokenizer
from lmtrain.data.tokenizer import tokenizer_of_characters
from lmtrain.files.limited import read_limited

CHARACTERS_FILE = "meta.pkl"
MAX_BYTES = 16_000_000  # twice the size of a file with every character of Unicode
MAX_INT = 2**31  # ids are smaller; an attacker could choose larger keys that make a dict slow

_MARK = object()


def read_characters(path: Path) -> StoredTokenizer:
    """Return the tokenizer that a `meta.pkl` describes, with one id per character.

    Raises:
        ValueError: the file contains more than plain containers, or no ids of characters; the message names the file.
        OSError: the file can't be read.
    """
    try:
        content = read_plain_pickle(read_limited(path, MAX_BYTES))
        return tokenizer_of_characters(_ids_of_characters(content))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_plain_pickle(content: bytes) -> Any:
    """Return the dicts, lists, text and integers of a pickle. The memory used is a small multiple of its size.

    Raises:
        ValueError: the pickle contains anything else, or is not a pickle.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                return stack.pop()
            _follow(opcode.name, argument, stack, memo)
    except (IndexError, KeyError, TypeError, AttributeError) as error:  # too few operands, a list as a key
        raise ValueError(f"not a pickle ({error})") from error
    except RecursionError:
        raise ValueError("nested too deeply") from None
    raise ValueError("not a complete pickle")


def _follow(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """Execute one instruction."""
    if name in ("PROTO", "FRAME"):
        return
    if name in _MAKES:
        stack.append(_MAKES[name]())
    elif name in ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"):
        stack.append(argument)
    elif name in ("BININT", "BININT1", "BININT2", "INT", "LONG1"):
        if not abs(argument) < MAX_INT:
            raise ValueError(f"an integer of {argument.bit_length()} bits, which is not the id of a character")
        stack.append(argument)
    elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
        memo[len(memo) if name == "MEMOIZE" else int(argument)] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET", "GET"):
        stack.append(memo[int(argument)])
    elif name == "SETITEM":
        value, key = stack.pop(), stack.pop()
        stack[-1][key] = value
    elif name in ("SETITEMS", "DICT"):
        items = _pop_to_mark(stack)
        pairs = dict(zip(items[::2], items[1::2], strict=True))
        if name == "DICT":
            stack.append(pairs)
        else:
            stack[-1].update(pairs)
    elif name == "APPEND":
        item = stack.pop()
        stack[-1].append(item)
    elif name in ("APPENDS", "LIST"):
        items = _pop_to_mark(stack)
        if name == "LIST":
            stack.append(items)
        else:
            stack[-1].extend(items)
    else:
        named = f" {argument}" if isinstance(argument, str) else ""
        raise ValueError(f"contains more than dicts, lists, text and integers ({name}{named[:80]}); not read")


_MAKES: Mapping[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "MARK": lambda: _MARK}


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    items: list[Any] = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _ids_of_characters(content: Any) -> dict[str, int]:
    """Return the `stoi` entry of the file's content after checking it."""
    ids = content.get("stoi") if isinstance(content, dict) else None
    if not isinstance(ids, dict) or not ids:
        raise ValueError("has no ids of characters (stoi)")
    for character, number in ids.items():
        if not isinstance(character, str) or len(character) != 1 or "\ud800" <= character <= "\udfff":
            raise ValueError(f"stoi has {character!r:.40}, which is not a character")
        if not isinstance(number, int) or not 0 <= number < MAX_INT:
            # The message does not show a list: with references to other lists, its text could be endless.
            wrong = number if isinstance(number, int) else f"a {type(number).__name__}"
            raise ValueError(f"stoi gives {character!r} {wrong}, which is not an id")
    if len(set(ids.values())) != len(ids):
        raise ValueError("stoi gives two characters the same id")
    return ids
