"""A comparison says that the best trial of a search was picked by its own value."""

from pathlib import Path

import numpy as np
import pytest
from support.synthetic_runs import write_run

from lmtrain.comparison.looking.picked import luck_in_words, luck_of_the_best
from lmtrain.comparison.run_comparison import compare
from lmtrain.comparison.runs import load_runs


@pytest.mark.parametrize("count", [2, 5, 20, 100])
def test_the_luck_of_the_best_is_the_expected_maximum(count: int) -> None:
    drawn = np.random.default_rng(0).standard_normal((20_000, count)).max(axis=1)
    assert luck_of_the_best(count) == pytest.approx(drawn.mean(), rel=0.05)


def test_one_value_is_not_picked() -> None:
    assert luck_of_the_best(1) == 0


def test_the_luck_is_in_units_of_the_loss_if_the_noise_is_known() -> None:
    assert luck_in_words(20).endswith("by up to 1.9 times the noise between seeds")
    assert luck_in_words(20, 0.05).endswith("by up to 1.9 times the noise between seeds (0.093)")


def texts(folder: Path) -> list[str]:
    return [note.text for note in compare(load_runs([folder])).notes if note.kind == "search"]


def test_a_search_is_named_with_the_way_to_confirm_it(tmp_path: Path) -> None:
    search = tmp_path / "search"
    for number in range(3):
        write_run(search / str(number), {"optimizer.lr": 10.0**-number}, final_loss=3 + 0.1 * number)
    assert texts(search) == []  # a grid
    (search / "search.json").write_text("{}")
    (text,) = texts(search)
    assert "the best of 3 was picked by the same values" in text
    assert f"python -m lmtrain confirm {search}" in text
    (search / "confirm").mkdir()
    (search / "confirm" / "confirm.json").write_text("{}")
    (text,) = texts(search)
    assert f"python -m lmtrain compare {search}/confirm" in text
