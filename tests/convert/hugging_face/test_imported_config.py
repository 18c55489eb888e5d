"""Tests of the overrides for a `config.json`: the windows of Qwen3, and sizes that no model has."""

from typing import Any

import pytest

from lmtrain.convert.hugging_face.imported_config import MOST_LAYERS, imported_overrides
from lmtrain.convert.hugging_face.model_config import FULL, SLIDING

QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "use_sliding_window": True,
    "sliding_window": 6,
}


def windows(kinds: object, layers: int) -> tuple[object, object]:
    found = imported_overrides({**QWEN3, "num_hidden_layers": layers, "layer_types": kinds})
    return found["model.sliding_window"], found["model.global_every"]


@pytest.mark.parametrize("layers", [1, 2, 7, MOST_LAYERS])  # a search over all pairs would take minutes for the last
def test_windows_are_in_all_layers_or_in_all_but_each_nth(layers: int) -> None:
    assert windows([SLIDING] * layers, layers) == (6, None)
    assert windows([FULL] * layers, layers) == (None, None)
    for every in (2, 3, layers):
        if 1 < every <= layers:
            kinds = [FULL if number % every == every - 1 else SLIDING for number in range(layers)]
            assert windows(kinds, layers) == (6, every)


@pytest.mark.parametrize("kinds", [[FULL, SLIDING, SLIDING], [SLIDING, FULL], ["odd"] * 3, 5, "full_attention"])
def test_other_windows_are_refused(kinds: object) -> None:
    with pytest.raises(ValueError, match="layer_types: only sliding windows in all layers, or in all but each n-th"):
        windows(kinds, 3)


@pytest.mark.parametrize("layers", [0, MOST_LAYERS + 1, 2**31, True])
def test_numbers_of_layers_that_no_model_has_are_refused(layers: int) -> None:
    with pytest.raises(ValueError, match=rf"num_hidden_layers={layers}: not a size from 1 to 10,000"):
        windows([SLIDING], layers)
