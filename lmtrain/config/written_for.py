"""Keeps the rates of an experiment, or of a run that is forked, to the optimizer and schedule they were found for.

An experiment is written for the choices of `optimizer` and `scheduler` that it has when it runs alone. Where the
command line or another experiment takes another choice, its values of that group have no use: a learning rate found for
AdamW says nothing about Lion. `compose` reads the experiments once, asks here what to leave out, and composes again.
"""

import copy
import posixpath
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from lmtrain.terminal.as_text import first_few, rounded

OPTIMIZER, SCHEDULER = "optimizer", "scheduler"
GROUPS = (OPTIMIZER, SCHEDULER)
FORKED = "fork/"  # what the path of a run that is forked begins with, among those of experiments
QUOTES = "\"'"
FORK = "++fork="  # what stands before it on a command line is of the run that is forked
RATE = re.compile(r"(.*_)?lr(_.*)?")  # keys that hold a learning rate: lr, min_lr, lr_end
SEARCHED = "hydra.sweeper.params"


@dataclass(frozen=True)
class ExperimentFile:
    """An experiment as it is written: its content without resolving anything, by its path in the config groups."""

    path: str  # experiments/tiny
    content: Mapping[str, Any]
    source: Path
    package: str | None  # `_global_`, from its first line

    def values(self, group: str) -> dict[str, Any]:
        """Return the values that it sets in a group, by dotted key."""
        node = self.content.get(group)
        return {f"{group}.{key}": value for key, value in node.items()} if isinstance(node, Mapping) else {}

    def searched(self, group: str) -> list[str]:
        """Return the keys of a group that it lets a search vary."""
        node: Any = self.content
        for key in SEARCHED.split("."):
            node = node.get(key) if isinstance(node, Mapping) else None
        return [str(key) for key in node or () if str(key).startswith(f"{group}.")]

    def own_choice(self, group: str) -> str | None:
        """Return what its defaults list chooses by `override /GROUP: CHOICE`; None if it leaves the group alone."""
        chosen = [value for words, name, value in self._defaults() if "override" in words and name == f"/{group}"]
        return str(chosen[-1]).removesuffix(".yaml") if chosen else None

    def included(self) -> list[str]:
        """Return the paths of the experiments that its defaults list includes."""
        paths = []
        for words, name, value in self._defaults():
            if "override" in words or name == "_self_":
                continue
            absolute = name if name.startswith("/") else f"/{posixpath.dirname(self.path)}/{name}"
            choices = value if isinstance(value, list) else [value]
            paths += [absolute if choice is None else f"{absolute}/{choice}" for choice in choices]
        return [path.strip("/").removesuffix(".yaml") for path in paths]

    def _defaults(self) -> Iterator[tuple[list[str], str, Any]]:
        """Yield the keywords, the name without its package, and the choice (None for a file) of each entry."""
        entries = self.content.get("defaults")
        for entry in entries if isinstance(entries, list) else ():
            key, value = next(iter(entry.items())) if isinstance(entry, dict) and entry else (entry, None)
            *words, name = str(key).split()
            yield words, name.partition("@")[0], value


@dataclass
class Reading:
    """The experiments that a composition reads, by path, and the dotted keys that it leaves out of each."""

    left_out: Mapping[str, Collection[str]] = field(default_factory=dict)
    files: dict[str, ExperimentFile] = field(default_factory=dict)


_READING: ContextVar[Reading | None] = ContextVar("reading", default=None)


@contextmanager
def reading_experiments(left_out: Mapping[str, Collection[str]]) -> Iterator[Reading]:
    """Leave these keys out of the experiments that Hydra reads in the `with` block, and note which those are."""
    reading = Reading(left_out)
    token = _READING.set(reading)
    try:
        yield reading
    finally:
        _READING.reset(token)


def note_and_leave_out(file: ExperimentFile) -> Mapping[str, Any]:
    """Note an experiment that is read; return its content without what is to be left out of it."""
    reading = _READING.get()
    if reading is None:
        return file.content
    reading.files[file.path] = file
    kept = dict(copy.deepcopy(file.content))
    for dotted in reading.left_out.get(file.path, ()):
        group, _, key = dotted.partition(".")
        kept[group] = {name: value for name, value in kept[group].items() if str(name) != key}
    return kept


@dataclass(frozen=True)
class Mismatch:
    """An experiment whose values of a group were written for one choice, where another one is taken."""

    file: ExperimentFile
    group: str
    written_for: str
    taken: str

    def values_of_no_use(self) -> dict[str, Any]:
        """Return the values that do not go with the choice taken; of a schedule, those that it may not have."""
        if self.group == SCHEDULER:
            return self.file.values(SCHEDULER)
        values = self.file.values(OPTIMIZER) | self.file.values(SCHEDULER)
        return {key: value for key, value in values.items() if is_found_for_optimizer(key, value)}


def is_found_for_optimizer(key: str, value: Any) -> bool:
    """Return whether a value is of no use to another optimizer: its own, or a learning rate of the schedule.

    A rate that refers to another value, such as the optimizer's, follows it.
    """
    group, _, name = key.partition(".")
    return group == OPTIMIZER or (group == SCHEDULER and bool(RATE.fullmatch(name)) and "${" not in str(value))


def forked_run(overrides: Sequence[Override], run_dir: str, choices: Mapping[str, Any]) -> ExperimentFile:
    """Return the values that the overrides of a run set, as if an experiment did, for the choices of that run."""
    content: dict[str, Any] = {"defaults": [{f"override /{group}": choices.get(group)} for group in GROUPS]}
    for override in overrides:
        group, _, key = override.key_or_group.partition(".")
        if group in GROUPS and key:
            content.setdefault(group, {})[key] = override.value()
    return ExperimentFile(f"{FORKED}{Path(run_dir.strip(QUOTES)).name}", content, Path(run_dir), "_global_")


def without_left_out(overrides: Sequence[str], left_out: Mapping[str, Collection[str]]) -> list[str]:
    """Return a command line without the overrides of a forked run that are left out, which stand before the fork."""
    keys = {key for path, keys in left_out.items() if path.startswith(FORKED) for key in keys}
    fork_at = max((at for at, text in enumerate(overrides) if text.startswith(FORK)), default=0)
    origins = [text for text in overrides[:fork_at] if re.split("[=@]", text.lstrip("+~"))[0] not in keys]
    return [*origins, *overrides[fork_at:]]


def mismatches(
    files: Mapping[str, ExperimentFile],
    taken: Mapping[str, Any],
    given: Collection[str],
    menu_choices: Callable[[], Mapping[str, Any]],
) -> list[Mismatch]:
    """Return what does not go with the choices taken.

    The experiment that a value stands in counts, not one that includes it. `given` are the keys that overrides set, and
    `menu_choices` returns those that are taken without any override.
    """
    found = []
    for group in GROUPS:
        if group not in given and all(file.own_choice(group) is None for file in files.values()):
            continue  # the menu's choice, for which all of them are written
        for file in files.values():
            written_for = _choice_alone(file, group, files) or menu_choices().get(group)
            # One that is interpolated goes with the choices taken.
            if not taken.get(group) or not written_for or taken[group] == written_for or "${" in written_for:
                continue
            mismatch = Mismatch(file, group, written_for, taken[group])
            if mismatch.values_of_no_use() or file.searched(group):
                found.append(mismatch)
    return found


def _choice_alone(file: ExperimentFile, group: str, files: Mapping[str, ExperimentFile]) -> str | None:
    """Return the choice of an experiment, or of those that it includes: the last of these wins, as in Hydra."""
    if (own := file.own_choice(group)) is not None:
        return own
    inner = (files[path] for path in reversed(file.included()) if path in files and path != file.path)
    return next((choice for each in inner if (choice := _choice_alone(each, group, files)) is not None), None)


def keys_to_leave_out(found: Sequence[Mismatch], kept: Collection[str] = ()) -> dict[str, list[str]]:
    """Return the keys to leave out of each experiment, by its path.

    `kept` are the keys that the schedule taken has as well: they stay, unless they are rates of another optimizer.
    """
    keys: dict[str, dict[str, None]] = {}
    for mismatch in found:
        stays = kept if mismatch.group == SCHEDULER else ()
        own = keys.setdefault(mismatch.file.path, {})
        own.update(dict.fromkeys(key for key in mismatch.values_of_no_use() if key not in stays))
    return {path: list(own) for path, own in keys.items() if own}


def notes_on(found: Sequence[Mismatch], left_out: Mapping[str, Collection[str]], given: Collection[str]) -> list[str]:
    """Return a line for each choice that others were taken for: what was left out, and what stays.

    `given` are keys that overrides set, about which there is nothing to say.
    """
    notes = []
    said: set[str] = set(given)
    for group, was, now in dict.fromkeys((each.group, each.written_for, each.taken) for each in found):
        gone: dict[str, Any] = {}
        stays: dict[str, Any] = {}
        same = [each for each in found if (each.group, each.written_for, each.taken) == (group, was, now)]
        for each in reversed(same):  # an experiment that includes another was read before it, and its values win
            of_no_use, left = each.values_of_no_use(), left_out.get(each.file.path, ())
            gone |= {key: value for key, value in of_no_use.items() if key in left and key not in said}
            if group == SCHEDULER:
                own = each.file.values(OPTIMIZER) | each.file.values(SCHEDULER)
                stays |= {
                    key: value
                    for key, value in own.items()
                    if key not in left and key not in said and (key in of_no_use or RATE.fullmatch(key.split(".")[1]))
                }
        said |= gone.keys()
        parts = []
        if gone and group == OPTIMIZER:
            parts.append(
                f"left out, so that {now}'s own values hold: {_listed(gone)}; {next(iter(gone))}=VALUE sets one"
            )
        elif gone:
            parts.append(f"left out, as {now} has no such key: {_listed(gone)}")
        if stays:
            parts.append(f"kept, though found with {was}: {_listed(stays)}")
        if ranges := [key for each in same for key in each.file.searched(group)]:
            parts.append(f"the ranges of its search are for {was}, too: {first_few(ranges)}")
        if parts:
            names = " and ".join(each.file.path.replace("/", "=", 1) for each in same)
            notes.append(f"{names}: written for {group}={was}, not for {now}; {'; '.join(parts)}")
    return notes


def _listed(values: Mapping[str, Any]) -> str:
    return first_few((f"{key}={rounded(value)}" for key, value in values.items()), 6)
