"""Reads the config and the sample of a run whose files may be a stranger's, damaged, or still being written."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lmtrain.files.limited import FastSafeLoader, read_limited, read_yaml_text

MAX_SAMPLE_BYTES = 1_000_000


def read_config(path: Path) -> dict[str, Any]:
    """Return the resolved config, flat: `{"optimizer.lr": 0.003, …}`; lists stay whole.

    Raises:
        ValueError: it is not the plain YAML that lmtrain writes, or made to exhaust the memory.
        OSError: it can't be read.
    """
    text = read_yaml_text(path)
    try:
        config = yaml.load(text, Loader=FastSafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not the YAML of a config ({str(error).splitlines()[0]})") from error
    if not isinstance(config, dict) or not config:
        raise ValueError(f"{path}: not the YAML of a config")
    return dict(_flat(config))


def read_sample(path: Path) -> str | None:
    """Return the text that the run's model wrote; None if there is none."""
    try:
        return read_limited(path, MAX_SAMPLE_BYTES).decode(errors="replace")
    except (OSError, ValueError):
        return None


def _flat(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, str | int | float | bool | list | None)
            yield f"{prefix}{key}", value if plain else str(value)  # a date, say
