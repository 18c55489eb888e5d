"""Identifies runs that compute the same, by a hash of their config."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Name, loggers and the way in which the run was started; none of these keys changes a number.
NEUTRAL_KEYS = ("name", "logger", "resume", "retry_failed")


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the config in plain containers."""
    container: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    return container


def config_hash(config: Mapping[str, Any]) -> str:
    """Return a hash of a resolved config (in plain containers) that ignores `NEUTRAL_KEYS`."""
    computed = {key: value for key, value in config.items() if key not in NEUTRAL_KEYS}
    return hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()[:16]
