"""Which runs are the same: those that compute the same."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

# How a run is called, where it reports to, and how it was asked for; none of them changes a number.
NEUTRAL_KEYS = ("name", "logger", "resume", "retry_failed")


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the config in plain containers."""
    container: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    return container


def config_hash(config: Mapping[str, Any]) -> str:
    """Return a hash that is equal for runs of the same resolved config (plain containers), but for `NEUTRAL_KEYS`."""
    computed = {key: value for key, value in config.items() if key not in NEUTRAL_KEYS}
    return hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()[:16]
