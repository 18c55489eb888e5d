"""Finds the setting that a user names as the baseline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmtrain.comparison.labels import setting_text, short_names
from lmtrain.comparison.runs import ComparedRun
from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.files.numbers import is_number


def find_baseline(text: str, groups: Sequence[ReplicateGroup], runs: Sequence[ComparedRun]) -> ReplicateGroup:
    """Return the group that a label, conditions such as `lr=0.003 batch_size=8`, or a run directory names.

    Raises:
        ValueError: it names no setting, or several.
    """
    labelled = [group for group in groups if group.label == text]
    path = Path(text).resolve()
    own = {run.label for run in runs if run.path.resolve() == path}
    of_run = [group for group in groups if own & {*group.runs}]
    found = labelled or of_run or [group for group in groups if _meets(text, group.settings)]
    if len(found) == 1:
        return found[0]
    problem = f"{len(found)} settings match" if found else "no setting matches"
    names = "; ".join(group.label for group in (found or groups))
    raise ValueError(f"--baseline {text!r}: {problem}; give one of: {names}")


def _meets(text: str, settings: Mapping[str, Any]) -> bool:
    """Return whether settings meet every condition `KEY=VALUE` of a text."""
    names = {**{short: key for key, short in short_names(settings).items()}, **{key: key for key in settings}}
    conditions = [word.partition("=") for word in text.split()]
    return all(
        key in names and _equal(settings[names[key]], value, names[key]) for key, _, value in conditions
    ) and bool(conditions)


def _equal(value: Any, text: str, key: str) -> bool:
    if setting_text(value, key) == text:
        return True
    try:
        return is_number(value) and float(value) == float(text)
    except ValueError:
        return False
