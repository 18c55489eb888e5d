"""The functions that show a phase exist; they are named in strings, which a rename would miss."""

import pytest

from lmtrain.verify.phases import PHASES, code_of


@pytest.mark.parametrize("name", [name for names in PHASES.values() for name in names])
def test_the_function_that_shows_a_phase_exists(name: str) -> None:
    assert code_of(name).co_name == name.rpartition(":")[2].rpartition(".")[2]
