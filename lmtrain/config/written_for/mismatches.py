"""Leaves out values of an experiment or a forked run that were written for another optimizer, scheduler or model.

An experiment is written for the choices of these groups that it has when it runs alone. If the command line or another
experiment selects another choice, the experiment's values for that group may be of no use: a learning rate found for
AdamW says nothing about Lion, and a Llama has no biases. `compose` reads the experiments once, asks this module which
values to leave out, and composes again.
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

from lmtrain.config.signature import TargetError, signature_of

OPTIMIZER, SCHEDULER, MODEL = "optimizer", "scheduler", "model"
GROUPS = (OPTIMIZER, SCHEDULER, MODEL)
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

    @property
    def is_fork(self) -> bool:
        return self.path.startswith(FORKED)

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
        """Return the values that do not fit the choice taken: all of a scheduler or model, which may lack the keys."""
        if self.group != OPTIMIZER:
            return self.file.values(self.group)
        values = self.file.values(OPTIMIZER) | self.file.values(SCHEDULER)
        return {key: value for key, value in values.items() if is_found_for_optimizer(key, value)}

    def ranges_of_no_use(self) -> list[str]:
        """Return the keys with search ranges for the choice replaced; the ranges of a model are its sizes."""
        return self.file.searched(self.group) if self.group != MODEL else []


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
            if mismatch.values_of_no_use() or mismatch.ranges_of_no_use():
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

    `kept` are keys that the scheduler or model taken also has; they stay, unless they are learning rates for another
    optimizer.
    """
    keys: dict[str, dict[str, None]] = {}
    for mismatch in found:
        stays = kept if mismatch.group != OPTIMIZER else ()
        own = keys.setdefault(mismatch.file.path, {})
        own.update(dict.fromkeys(key for key in mismatch.values_of_no_use() if key not in stays))
    return {path: list(own) for path, own in keys.items() if own}


def known_keys(found: Sequence[Mismatch], composed: Mapping[str, Any]) -> set[str]:
    """Return the keys that the schedulers and models taken have, in their files or in their signatures."""
    known = set()
    for group in {each.group for each in found} - {OPTIMIZER}:
        node = composed.get(group) or {}
        known |= {f"{group}.{key}" for key in node}
        try:
            signature = signature_of(str(node.get("_target_")), typed=())
        except TargetError:  # the check of the config reports it
            continue
        known |= {f"{group}.{key}" for key in signature.parameters}
        if signature.open:
            known |= {key for each in found if each.group == group for key in each.values_of_no_use()}
    return known


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
