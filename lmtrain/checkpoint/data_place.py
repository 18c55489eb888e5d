"""Finds config changes after which a run's place in the data, a number of samples, means something else."""

from collections.abc import Mapping
from typing import Any

from lmtrain.terminal.as_text import differences

# Keys of `data` that change neither the samples nor their order. The fingerprint tells whether the data is the same.
KEEP_SAMPLES = frozenset({"path", "paths", "batch_size", "vocab_size", "dtype"})


def order_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return `key: old → new` for each change between two configs that changes the samples or their order."""
    before, after = (_order(config) for config in (then, now))
    return differences(before, after)


def _order(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config["data"].items() if key not in KEEP_SAMPLES}
    return {"seed": config["seed"], "data": kept}
