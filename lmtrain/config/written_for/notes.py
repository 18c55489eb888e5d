"""Says which values of experiments and of a forked run were left out or kept for other choices of groups."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lmtrain.config.written_for.mismatches import OPTIMIZER, RATE, SCHEDULER, Mismatch
from lmtrain.terminal.as_text import first_few, rounded

LISTED = 16  # values of a note


def notes_on(
    found: Sequence[Mismatch],
    left_out: Mapping[str, Collection[str]],
    given: Collection[str],
    before: Mapping[str, Any],
    after: Any,
) -> list[str]:
    """Return a line for each choice that was replaced, with the values that were left out and those that were kept.

    Args:
        found: The mismatches.
        left_out: The keys left out of each experiment.
        given: Keys set by overrides, which are not mentioned.
        before: The unresolved config with all values of experiments: others than these were replaced anyway.
        after: The unresolved config without the values left out.
    """
    notes = []
    said: set[str] = set(given)
    for group, was, now in dict.fromkeys((each.group, each.written_for, each.taken) for each in found):
        gone: dict[str, Any] = {}
        stays: dict[str, Any] = {}
        same = [each for each in found if (each.group, each.written_for, each.taken) == (group, was, now)]
        for each in reversed(same):  # an experiment is read before those it includes, and its values win
            of_no_use, left = each.values_of_no_use(), left_out.get(each.file.path, ())
            gone |= {
                key: value
                for key, value in of_no_use.items()
                if key in left and key not in said and (each.file.is_fork or _applies(key, value, before))
            }
            if group == SCHEDULER:
                own = each.file.values(OPTIMIZER) | each.file.values(SCHEDULER)
                stays |= {
                    key: value
                    for key, value in own.items()
                    if key not in left
                    and key not in said
                    and (key in of_no_use or RATE.fullmatch(key.split(".")[1]))
                    and _applies(key, value, after)
                }
        said |= gone.keys()
        parts = []
        if gone and group == OPTIMIZER:
            parts.append(
                f"left out, so that values for {now} apply: {_listed(gone)}; set one with {next(iter(gone))}=VALUE"
            )
        elif gone:
            parts.append(f"left out, because {now} has no such key: {_listed(gone)}")
        if stays:
            parts.append(f"kept, although found with {was}: {_listed(stays)}")
        if ranges := [key for each in same for key in each.ranges_of_no_use()]:
            parts.append(f"its search ranges are also for {was}: {first_few(ranges)}")
        if parts:
            names = " and ".join(each.file.path.replace("/", "=", 1) for each in same)
            notes.append(f"{names}: written for {group}={was}, not for {now}; {'; '.join(parts)}")
    return notes


def _listed(values: Mapping[str, Any]) -> str:
    return first_few((f"{key}={rounded(value)}" for key, value in values.items()), LISTED)


def _applies(dotted: str, value: Any, config: Mapping[str, Any]) -> bool:
    """Return whether a config has this value of a group, or, of a mapping, any of its values."""
    group, _, key = dotted.partition(".")
    return _is_in(value, (config.get(group) or {}).get(key))


def _is_in(value: Any, config_value: Any) -> bool:
    if isinstance(value, Mapping) and isinstance(config_value, Mapping):
        return any(_is_in(each, config_value.get(key)) for key, each in value.items())
    return bool(value == config_value)
