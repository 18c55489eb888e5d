"""Compares the settings that a token folder was prepared with, also if an older version of lmtrain recorded them."""

from collections.abc import Mapping
from typing import Any

from lmtrain.terminal.as_text import differences
from lmtrain.terminal.paths import with_homes

LATER_SOURCE_SETTINGS = {"skip_missing": False}  # newer settings, with the values that older versions used


def changed_settings(recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return `key: old → new` for each difference. A setting that is newer than the folder counts as its default."""
    recorded, settings = with_homes(recorded), with_homes(settings)  # older versions recorded `~` unexpanded
    source, recorded_source = settings.get("source"), recorded.get("source")
    if isinstance(source, dict) and isinstance(recorded_source, dict):
        later = {key: value for key, value in LATER_SOURCE_SETTINGS.items() if key in source}
        recorded = {**recorded, "source": {**later, **recorded_source}}
    return differences(recorded, settings, "prepare")
