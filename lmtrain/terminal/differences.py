"""What changed between two configs, in words."""

import json
from collections.abc import Mapping
from typing import Any


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """`key: old → new` for every value in which two nested containers differ, a missing one counted as null."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = dict.fromkeys([*old, *new])
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    # As JSON, since that is how one of them may have been kept: a tuple is a list there.
    return [] if json.dumps(old) == json.dumps(new) else [f"{path}: {old} → {new}"]
