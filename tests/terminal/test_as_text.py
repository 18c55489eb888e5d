"""Tests of formatting values and differences as text."""

from typing import Any

import pytest

from lmtrain.terminal.as_text import as_written, differences, printable, rounded


def test_printable_text_does_not_control_the_terminal() -> None:
    assert printable("a\x1b[2J\nb\tc é") == "a [2J b c é"
    assert printable("a\x1b\nb", keep="\n", instead="?") == "a?\nb"


@pytest.mark.parametrize(
    ("value", "exact", "short"),
    [
        (None, "null", "null"),
        (True, "true", "true"),
        (0.1 + 0.2, "0.30000000000000004", "0.3"),
        (3, "3", "3"),
        ("a\nb", "a\nb", "a b"),
        ([1e-05, None, "x"], "[1e-05, None, 'x']", "[1e-05,null,x]"),
    ],
)
def test_a_value_in_full_and_rounded(value: Any, exact: str, short: str) -> None:
    assert (as_written(value), rounded(value)) == (exact, short)


def test_every_changed_value_is_named() -> None:
    old = {"a": {"b": 1, "same": [1]}, "gone": "x"}
    new = {"a": {"b": 2, "same": (1,)}, "added": None, "whole": {"c": 1}}
    assert differences(old, new) == ["a.b: 1 → 2", "gone: x → null", "whole: null → {'c': 1}"]
    assert differences(old, old) == []
    assert differences({"b": 1}, {"b": 2}, "prepare") == ["prepare.b: 1 → 2"]
