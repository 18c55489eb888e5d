"""Reads the overrides that a saved run was started with, and refuses those that lmtrain would not have recorded.

The author of the folder must not decide what is composed here. A choice must be a plain name that is found on the
user's own search path (`./conf`, `./experiments` and the shipped configs), and no override may set Hydra itself.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override

from lmtrain.config.check import GROUPS
from lmtrain.config.compose import set_up_hydra
from lmtrain.config.hydra_internals import test_for_groups
from lmtrain.config.overrides import parse_overrides
from lmtrain.config.recorded.trust import lies_in_a_run
from lmtrain.config.shipped import shipped
from lmtrain.errors import ConfigError
from lmtrain.files.limited import read_yaml_text
from lmtrain.terminal.as_text import shown

MAX_BYTES = 20_000  # a run has a few hundred bytes; Hydra needs minutes to parse ten times this limit
PLAIN_NAME = re.compile(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+)*")
KEY = re.compile(r"[\w$-]+(\.[\w$-]+)*")
PACKAGES = (*GROUPS, "logger")  # packages that a choice may be put into, also with a name below, as in `logger.second`


@dataclass(frozen=True)
class Recorded:
    """An override of a saved run; `chooses` tells whether it selects a choice of a config group or sets a value."""

    override: Override
    chooses: bool

    @property
    def key(self) -> str:
        return str(self.override.key_or_group)

    @property
    def line(self) -> str:
        return str(self.override.input_line)


def recorded_overrides(run_dir: Path) -> list[Recorded]:
    """Return the overrides that the run was started with.

    Raises:
        ConfigError: The overrides can't be read, or lmtrain would not have recorded one of them.
    """
    path = run_dir / ".hydra" / "overrides.yaml"
    try:
        lines = yaml.safe_load(read_yaml_text(path, MAX_BYTES))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from error
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ConfigError(f"{path}: is not a list of overrides")
    set_up_hydra()
    is_group = test_for_groups(shipped("conf"))
    recorded = [Recorded(override, _chooses(override, is_group)) for override in parse_overrides(lines)]
    for each in recorded:
        if reason := _reason_to_refuse(each, run_dir):
            raise ConfigError(f"{path}: {shown(each.line)}: {reason}")
    return recorded


def check_restored(lines: Sequence[tuple[str, str]], run_dir: Path) -> None:
    """Check that overrides made from a saved config set only their keys; `lines` are pairs of key and override.

    Raises:
        ConfigError: A key of the config would be read as something else, such as a choice of a group.
    """
    for (key, _), override in zip(lines, parse_overrides([line for _, line in lines]), strict=True):
        plain = KEY.fullmatch(key) and override.key_or_group == key and override.package is None
        if not plain or _sets_hydra(override) or override.is_sweep_override():
            raise ConfigError(f"{run_dir}: {shown(key)}: is not a key that the config of a run can have")


def _chooses(override: Override, is_group: Callable[[str], bool]) -> bool:
    key = override.key_or_group
    return "/" in key or override.package is not None or (is_group(key) and not isinstance(override.value(), dict))


def _reason_to_refuse(recorded: Recorded, run_dir: Path) -> str | None:
    """Return why lmtrain would not have recorded an override, or None if it may have."""
    override = recorded.override
    if _sets_hydra(override):
        return "sets Hydra itself, which the overrides of a run never do"
    if not recorded.key:
        return "has no key"
    if override.is_sweep_override():
        return "has several values, but a run has only one"
    if not recorded.chooses:
        return None
    package = override.package
    if package is not None and not (KEY.fullmatch(package) and package.partition(".")[0] in PACKAGES):
        return f"puts a choice into {shown(package)!r}, which the overrides of a run never do"
    for name in _chosen_names(override):
        if not PLAIN_NAME.fullmatch(name) or ".." in name:
            return "must choose a plain name, without a path out of the group's folder"
        if lies_in_a_run(recorded.key, name, run_dir):
            return "chooses a config inside a run directory, where someone else may have put it"
    return None


def _sets_hydra(override: Override) -> bool:
    """Return whether an override sets Hydra with its key or its package, as in `+data@hydra.run=…`."""
    return any((name or "").startswith("hydra") for name in (override.key_or_group, override.package))


def _chosen_names(override: Override) -> Iterator[str]:
    value: Any = override.value()
    for name in value if isinstance(value, list) else [value]:
        if name is not None and name != "":  # `~data`, `experiments=null`
            yield str(name)
