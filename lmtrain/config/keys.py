"""Lists the dotted keys of a config and finds the nearest one to a misspelt key."""

import difflib
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf

HYDRA_KEYS = frozenset({"_target_", "_partial_", "_convert_", "_recursive_"})


def key_paths(node: Any, prefix: str = "") -> list[str]:
    """Return all dotted keys of a nested container; those that only refer to another key (`${…}`) are last."""
    values = _values(node, prefix)
    return sorted(values, key=lambda path: str(values[path]).startswith("${"))


def _values(node: Any, prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items() if isinstance(node, dict) else ():
        found |= {f"{prefix}{key}": value, **_values(value, f"{prefix}{key}.")}
    return found


def did_you_mean(key: str, valid: Iterable[str], prefix: str = "") -> str:
    """Return `; did you mean …?` with the nearest valid key, or the keys of its group, or '' if there is neither.

    The nearest key is, in this order: a key of the same group with a similar last part, a key with a similar path (if
    the group is misspelt), or a key anywhere with a similar last part.
    """
    valid = list(valid)
    group, _, name = key.rpartition(".")
    siblings = [path.rpartition(".")[2] for path in valid if group and path.rpartition(".")[0] == group]
    siblings = [sibling for sibling in siblings if sibling not in HYDRA_KEYS]
    near = [sibling for sibling in siblings if _abbreviates(name, sibling)]
    near = near or difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)
    last_parts = {path.rpartition(".")[2]: path for path in reversed(valid)}
    nearest = (
        [f"{group}.{sibling}" for sibling in near]
        or ([] if siblings else difflib.get_close_matches(key, valid, n=1, cutoff=0.7))
        or [last_parts[other] for other in difflib.get_close_matches(name, last_parts, n=1, cutoff=0.7)]
    )
    if nearest:
        return f"; did you mean {prefix}{nearest[0]}?"
    return f"; {group} has {', '.join(siblings)}" if siblings else ""


def _abbreviates(name: str, other: str) -> bool:
    """Return whether each word of `name` begins a word of `other`, in the same order, as in `grad_accum`."""
    words = iter(other.split("_"))
    return all(any(longer.startswith(word) for longer in words) for word in name.split("_"))


def is_open_mapping(cfg: DictConfig, key: str) -> bool:
    """Return whether a key holds a mapping of any names, such as `model.config`: one that is no part of the config."""
    node = OmegaConf.select(cfg, key) if "." in key else None
    return isinstance(node, DictConfig) and "_target_" not in node
