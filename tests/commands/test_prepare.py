"""Tests of `python -m lmtrain prepare` when there is nothing to prepare."""

import pytest

from lmtrain.commands.prepare import main
from lmtrain.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["data=tokens", "data.path=made/elsewhere"], "data.path=made/elsewhere"),
        (["data=mixture", "data.paths={a: made/elsewhere}", "data.weights={a: 1}"], "data"),
    ],
)
def test_data_without_a_recipe_cannot_be_prepared(overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named}: this data choice has no recipe"):
        main(overrides)
