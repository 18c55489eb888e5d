"""Leaves out values of an experiment or a forked run that were found for another optimizer or scheduler.

An experiment is written for the choices of `optimizer` and `scheduler` that it has when it runs alone. If the command
line or another experiment selects another choice, the experiment's values for that group are of no use: a learning rate
found for AdamW says nothing about Lion. `compose` reads the experiments once, asks this module which values to leave
out, and composes again.
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
FORKED = "fork/"  # prefix of the path of a forked run, among the paths of experiments
QUOTES = "\"'"
FORK = "++fork="  # in a command line, overrides before this one belong to the forked run
RATE = re.compile(r"(.*_)?lr(_.*)?")  # keys of learning rates: lr, min_lr, lr_end
SEARCHED = "hydra.sweeper.params"
DECAY_STEPS, ENDS = "scheduler.decay_steps", ("trainer.max_steps", "scheduler.max_steps")


@dataclass(frozen=True)
class ExperimentFile:
    """An experiment file with its unresolved content; `path` is its path in the config groups."""

    path: str  # experiments/tiny
    content: Mapping[str, Any]
    source: Path
    package: str | None  # `_global_`, from its first line

    def values(self, group: str) -> dict[str, Any]:
        """Return the values that the experiment sets in a group, by dotted key."""
        node = self.content.get(group)
        return {f"{group}.{key}": value for key, value in node.items()} if isinstance(node, Mapping) else {}

    def searched(self, group: str) -> list[str]:
        """Return the keys of a group that the experiment lets a search vary."""
        node: Any = self.content
        for key in SEARCHED.split("."):
            node = node.get(key) if isinstance(node, Mapping) else None
        return [str(key) for key in node or () if str(key).startswith(f"{group}.")]

    def own_choice(self, group: str) -> str | None:
        """Return the choice in the defaults list (`override /GROUP: CHOICE`), or None if there is none."""
        chosen = [value for words, name, value in self._defaults() if "override" in words and name == f"/{group}"]
        return str(chosen[-1]).removesuffix(".yaml") if chosen else None

    def included(self) -> list[str]:
        """Return the paths of the experiments in the defaults list."""
        paths = []
        for words, name, value in self._defaults():
            if "override" in words or name == "_self_":
                continue
            absolute = name if name.startswith("/") else f"/{posixpath.dirname(self.path)}/{name}"
            choices = value if isinstance(value, list) else [value]
            paths += [absolute if choice is None else f"{absolute}/{choice}" for choice in choices]
        return [path.strip("/").removesuffix(".yaml") for path in paths]

    def _defaults(self) -> Iterator[tuple[list[str], str, Any]]:
        """Yield, for each entry, its keywords, its name without package, and its choice (None for a file)."""
        entries = self.content.get("defaults")
        for entry in entries if isinstance(entries, list) else ():
            key, value = next(iter(entry.items())) if isinstance(entry, dict) and entry else (entry, None)
            *words, name = str(key).split()
            yield words, name.partition("@")[0], value


@dataclass
class Reading:
    """The experiments that a composition has read, by path, and the dotted keys to leave out of each."""

    left_out: Mapping[str, Collection[str]] = field(default_factory=dict)
    files: dict[str, ExperimentFile] = field(default_factory=dict)


_READING: ContextVar[Reading | None] = ContextVar("reading", default=None)


@contextmanager
def reading_experiments(left_out: Mapping[str, Collection[str]]) -> Iterator[Reading]:
    """Leave keys out of the experiments that Hydra reads in the `with` block, and record these experiments."""
    reading = Reading(left_out)
    token = _READING.set(reading)
    try:
        yield reading
    finally:
        _READING.reset(token)


def note_and_leave_out(file: ExperimentFile) -> Mapping[str, Any]:
    """Record that an experiment is read, and return its content without the keys to leave out."""
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
    """An experiment that was written for another choice of a group than the one that is taken."""

    file: ExperimentFile
    group: str
    written_for: str
    taken: str

    def values_of_no_use(self) -> dict[str, Any]:
        """Return the values that do not fit the choice taken; for a scheduler, all of them, as it may lack the keys."""
        if self.group == SCHEDULER:
            return self.file.values(SCHEDULER)
        values = self.file.values(OPTIMIZER) | self.file.values(SCHEDULER)
        return {key: value for key, value in values.items() if is_found_for_optimizer(key, value)}


def is_found_for_optimizer(key: str, value: Any) -> bool:
    """Return whether a value is of no use to another optimizer: an optimizer setting, or a scheduler's learning rate.

    A learning rate that refers to another value, such as that of the optimizer, is not one of these.
    """
    group, _, name = key.partition(".")
    return group == OPTIMIZER or (group == SCHEDULER and bool(RATE.fullmatch(name)) and "${" not in str(value))


def forked_run(overrides: Sequence[Override], run_dir: str, choices: Mapping[str, Any]) -> ExperimentFile:
    """Return the values set by the overrides of a run as an experiment written for the choices of that run."""
    content: dict[str, Any] = {"defaults": [{f"override /{group}": choices.get(group)} for group in GROUPS]}
    for override in overrides:
        group, _, key = override.key_or_group.partition(".")
        if group in GROUPS and key:
            content.setdefault(group, {})[key] = override.value()
    return ExperimentFile(f"{FORKED}{Path(run_dir.strip(QUOTES)).name}", content, Path(run_dir), "_global_")


def without_left_out(overrides: Sequence[str], left_out: Mapping[str, Collection[str]]) -> list[str]:
    """Return a command line without those overrides of a forked run (before `++fork`) that are left out."""
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
    """Return the experiments that were written for other choices than those taken.

    The experiment that contains a value counts, not an experiment that includes it.

    Args:
        files: The experiments by path.
        taken: The choice of each group.
        given: Keys set by overrides.
        menu_choices: Returns the choices of the main config.
    """
    found = []
    for group in GROUPS:
        if group not in given and all(file.own_choice(group) is None for file in files.values()):
            continue  # the choice of the main config, for which all experiments are written
        for file in files.values():
            written_for = _choice_alone(file, group, files) or menu_choices().get(group)
            # An interpolated choice fits the choices taken.
            if not taken.get(group) or not written_for or taken[group] == written_for or "${" in written_for:
                continue
            mismatch = Mismatch(file, group, written_for, taken[group])
            if mismatch.values_of_no_use() or file.searched(group):
                found.append(mismatch)
    return found


def _choice_alone(file: ExperimentFile, group: str, files: Mapping[str, ExperimentFile]) -> str | None:
    """Return the choice of an experiment, or of the experiments it includes; the last of these wins, as in Hydra."""
    if (own := file.own_choice(group)) is not None:
        return own
    inner = (files[path] for path in reversed(file.included()) if path in files and path != file.path)
    return next((choice for each in inner if (choice := _choice_alone(each, group, files)) is not None), None)


def keys_to_leave_out(found: Sequence[Mismatch], kept: Collection[str] = ()) -> dict[str, list[str]]:
    """Return the keys to leave out of each experiment, by its path.

    `kept` are keys that the scheduler taken also has; they stay, unless they are learning rates for another optimizer.
    """
    keys: dict[str, dict[str, None]] = {}
    for mismatch in found:
        stays = kept if mismatch.group == SCHEDULER else ()
        own = keys.setdefault(mismatch.file.path, {})
        own.update(dict.fromkeys(key for key in mismatch.values_of_no_use() if key not in stays))
    return {path: list(own) for path, own in keys.items() if own}


def notes_on(found: Sequence[Mismatch], left_out: Mapping[str, Collection[str]], given: Collection[str]) -> list[str]:
    """Return a line for each choice that was replaced, with the values that were left out and those that were kept.

    Keys in `given` are set by overrides and therefore not mentioned.
    """
    notes = []
    said: set[str] = set(given)
    for group, was, now in dict.fromkeys((each.group, each.written_for, each.taken) for each in found):
        gone: dict[str, Any] = {}
        stays: dict[str, Any] = {}
        same = [each for each in found if (each.group, each.written_for, each.taken) == (group, was, now)]
        for each in reversed(same):  # an experiment is read before those it includes, and its values win
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
                f"left out, so that {now}'s own values apply: {_listed(gone)}; set one with {next(iter(gone))}=VALUE"
            )
        elif gone:
            parts.append(f"left out, because {now} has no such key: {_listed(gone)}")
        if stays:
            parts.append(f"kept, although found with {was}: {_listed(stays)}")
        if ranges := [key for each in same for key in each.file.searched(group)]:
            parts.append(f"its search ranges are also for {was}: {first_few(ranges)}")
        if parts:
            names = " and ".join(each.file.path.replace("/", "=", 1) for each in same)
            notes.append(f"{names}: written for {group}={was}, not for {now}; {'; '.join(parts)}")
    return notes


def _listed(values: Mapping[str, Any]) -> str:
    return first_few((f"{key}={rounded(value)}" for key, value in values.items()), 6)


def end_of_branch(own: Sequence[str], origins: Sequence[str] = ()) -> list[str]:
    """Return the overrides for the length of a fork, or nothing if it has no decay of its own, or names its length.

    `fork=RUN step=2000 scheduler=wsd scheduler.decay_steps=500` decays at once, so it trains until step 2500.

    Args:
        own: The overrides of the fork itself, with the step at which it begins.
        origins: The overrides of its parent, which may have set where the schedule ends.
    """
    given = {key.lstrip("+"): value for key, _, value in (text.partition("=") for text in own)}
    step, decay_steps = given.get("step", ""), given.get(DECAY_STEPS, "")
    numbers = step.isdecimal() and decay_steps.isdecimal() and int(decay_steps) > 0
    if "fork" not in given or not numbers or any(key in given for key in ENDS):
        return []
    end = int(step) + int(decay_steps)
    of_parent = [ENDS[1]] if any(text.lstrip("+").startswith(f"{ENDS[1]}=") for text in origins) else []
    return [f"{key}={end}" for key in (ENDS[0], *of_parent)]
