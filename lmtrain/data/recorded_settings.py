"""The settings that a token folder was prepared with, as older versions of lmtrain recorded them, too."""

from collections.abc import Mapping
from typing import Any

from lmtrain.terminal.as_text import differences
from lmtrain.terminal.paths import with_homes

LATER_SOURCE_SETTINGS = {"skip_missing": False}  # what folders that are older than the setting were made with


def changed_settings(recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return `key: old → new` for each difference; a setting that is younger than the folder had its default."""
    recorded, settings = with_homes(recorded), with_homes(settings)  # older folders have `~` as it was written
    source, recorded_source = settings.get("source"), recorded.get("source")
    if isinstance(source, dict) and isinstance(recorded_source, dict):
        later = {key: value for key, value in LATER_SOURCE_SETTINGS.items() if key in source}
        recorded = {**recorded, "source": {**later, **recorded_source}}
    return differences(recorded, settings, "prepare")
