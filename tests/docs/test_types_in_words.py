"""Annotations in words."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Interval
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, StringConstraints
from types_in_words import in_words


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "whole number"),
        (PositiveInt, "whole number at least 1"),
        (NonNegativeInt | None, "whole number at least 0 or `null`"),
        (PositiveFloat, "number above 0"),
        (None | bool | Literal["auto"], "`true`, `false`, `auto` or `null`"),
        (Annotated[float, Interval(ge=0, lt=1)], "number at least 0 and below 1"),
        (Annotated[int, Interval(ge=0, lt=2**63)], "whole number at least 0 and below 2^63"),
        (Literal["cpu"] | Annotated[str, StringConstraints(pattern=r"^\d$")], r"`cpu` or text that matches `^\d$`"),
        (str | list[str], "text or list of texts"),
        (tuple[PositiveFloat, PositiveFloat], "list of 2 numbers above 0"),
        (dict[str, str | list[str]], "mapping of names to texts or lists of texts"),
        (Callable[..., Any], "a part with a `_target_`"),
        (Any, ""),
    ],
)
def test_an_annotation_in_words(annotation: Any, words: str) -> None:
    assert in_words(annotation) == words
