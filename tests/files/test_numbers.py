"""Numbers become valid JSON, and values from damaged files that are not numbers are recognised."""

import json
import math

from lmtrain.files.numbers import as_float, finite_or_none, is_number, nan_as_null


def test_only_numbers_are_numbers() -> None:
    assert [is_number(value) for value in (1, 1.5, math.nan, True, None, "1", [1])] == [True] * 3 + [False] * 4
    assert (as_float(2), math.isnan(as_float(True)), math.isnan(as_float("2"))) == (2.0, True, True)
    assert [finite_or_none(value) for value in (2, math.inf, math.nan, True, "2", None)] == [2.0] + [None] * 5


def test_json_has_null_for_nan_and_infinity() -> None:
    content = {"a": [1, math.nan, ("x", -math.inf)], "b": {"c": 2.5, "d": True}}
    assert json.dumps(nan_as_null(content), allow_nan=False) == (
        '{"a": [1, null, ["x", null]], "b": {"c": 2.5, "d": true}}'
    )
