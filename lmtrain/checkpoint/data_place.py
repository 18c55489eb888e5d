"""Whether a run's place in the data, a number of samples, still means the same after a change of its config."""

from collections.abc import Mapping
from typing import Any

from lmtrain.terminal.as_text import differences

# Keys of `data` that leave every sample what and where it is; the fingerprint says whether it is the same data.
KEEP_SAMPLES = frozenset({"path", "paths", "batch_size", "vocab_size", "dtype"})


def order_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return `key: old → new` for what gives the numbers of samples another meaning, between two configs of a run."""
    before, after = (_order(config) for config in (then, now))
    return differences(before, after)


def _order(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config["data"].items() if key not in KEEP_SAMPLES}
    return {"seed": config["seed"], "data": kept}
