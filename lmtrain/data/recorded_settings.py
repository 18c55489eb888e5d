"""Compares the settings that a token folder was prepared with, also if an older version of lmtrain recorded them."""

from collections.abc import Mapping
from typing import Any

from lmtrain.terminal.as_text import differences
from lmtrain.terminal.paths import with_homes

# Newer settings, with the values that older versions used.
LATER_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "source": {"skip_missing": False},
    "holdout": {"test_share": 0, "test": None},
}


def changed_settings(recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return `key: old → new` for each difference. A setting that is newer than the folder counts as its default."""
    recorded, settings = with_homes(recorded), with_homes(settings)  # older versions recorded `~` unexpanded
    for part, newer in LATER_SETTINGS.items():
        now, then = settings.get(part), recorded.get(part)
        if isinstance(now, dict) and isinstance(then, dict):
            later = {key: value for key, value in newer.items() if key in now}
            recorded = {**recorded, part: {**later, **then}}
    return differences(recorded, settings, "prepare")
