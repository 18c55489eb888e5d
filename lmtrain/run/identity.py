"""Which runs are the same: those that compute the same."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# What a run is called, where it reports to, and how it was asked for; nothing of it changes a number.
NEUTRAL_KEYS = ("name", "logger", "resume", "retry_failed")


def config_hash(config: Mapping[str, Any]) -> str:
    """Equal for runs of the same resolved config (plain containers), their name and loggers aside."""
    computed = {key: value for key, value in config.items() if key not in NEUTRAL_KEYS}
    return hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()[:16]
