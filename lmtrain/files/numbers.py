"""Handles numbers in files: JSON has no NaN or infinity, and a damaged file may have any value instead of a number."""

import math
from typing import Any, TypeGuard


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether a value is an integer or a float; a bool is neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_float(value: Any) -> float:
    """Return a number as a float, and NaN for anything else, such as an integer too large for a float."""
    try:
        return float(value) if is_number(value) else math.nan
    except OverflowError:
        return math.nan


def finite_or_none(value: Any) -> float | None:
    """Return a finite number as a float, and None for anything else."""
    number = as_float(value)
    return number if math.isfinite(number) else None


def nan_as_null(value: Any) -> Any:
    """Return nested containers with None for every NaN and infinity in them."""
    match value:
        case dict():
            return {key: nan_as_null(item) for key, item in value.items()}
        case list() | tuple():
            return [nan_as_null(item) for item in value]
        case float() if not math.isfinite(value):
            return None
    return value
