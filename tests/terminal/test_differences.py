"""What changed between two configs."""

from lmtrain.terminal.differences import differences


def test_every_changed_value_is_named() -> None:
    old = {"a": {"b": 1, "same": [1]}, "gone": "x"}
    new = {"a": {"b": 2, "same": (1,)}, "added": None, "whole": {"c": 1}}
    assert differences(old, new) == ["a.b: 1 → 2", "gone: x → None", "whole: None → {'c': 1}"]
    assert differences(old, old) == []
    assert differences({"b": 1}, {"b": 2}, "prepare") == ["prepare.b: 1 → 2"]
