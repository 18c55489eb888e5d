"""Identifies runs that compute the same, by a hash of their config."""

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmtrain.config.batch_size import keep_found_size
from lmtrain.config.recorded.trust import read_saved
from lmtrain.terminal.as_text import differences, first_few

# Name, loggers and the way in which the run was started; none of these keys changes a number.
NEUTRAL_KEYS = ("name", "logger", "resume", "retry_failed")
SHOWN_DIFFERENCES = 5


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the config in plain containers."""
    container: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    return container


def config_hash(config: Mapping[str, Any]) -> str:
    """Return a hash of a resolved config (in plain containers) that ignores `NEUTRAL_KEYS`."""
    computed = {key: value for key, value in config.items() if key not in NEUTRAL_KEYS}
    return hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()[:16]


def difference_from_run(run_dir: Path, config: Mapping[str, Any]) -> str | None:
    """Return how a resolved config differs from that of the run in a directory; None if both compute the same.

    Raises:
        ConfigError: The run's `config.yaml` can't be read.
    """
    saved: Any = OmegaConf.to_container(read_saved(run_dir / "config.yaml"))
    wanted = copy.deepcopy(dict(config))
    keep_found_size(wanted, saved)
    if config_hash(saved) == config_hash(wanted):
        return None
    before, after = ({key: value for key, value in one.items() if key not in NEUTRAL_KEYS} for one in (saved, wanted))
    return first_few(differences(before, after), SHOWN_DIFFERENCES, separator="; ")
