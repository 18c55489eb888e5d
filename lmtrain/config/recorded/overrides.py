"""The overrides that a saved run was started with: read, and held to what a run of lmtrain's own can have recorded.

Whoever wrote the folder should not choose what is composed here. A choice is a plain name, found on the user's own
search path (`./conf`, `./experiments`, and what is shipped), and nothing sets Hydra itself.
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

MAX_BYTES = 20_000  # a run has a few hundred; Hydra takes minutes to parse ten times as much
PLAIN_NAME = re.compile(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+)*")
KEY = re.compile(r"[\w$-]+(\.[\w$-]+)*")
PACKAGES = (*GROUPS, "logger")  # what a choice may be put into; a name below it may follow, as in `logger.second`


@dataclass(frozen=True)
class Recorded:
    """An override of a saved run; `chooses` if it takes a choice from a config group, and sets no value in one."""

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
        ConfigError: they can't be read, or one of them is none that a run of lmtrain's own records.
    """
    path = run_dir / ".hydra" / "overrides.yaml"
    try:
        lines = yaml.safe_load(read_yaml_text(path, MAX_BYTES))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from error
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ConfigError(f"{path}: not a list of overrides")
    set_up_hydra()
    is_group = test_for_groups(shipped("conf"))
    recorded = [Recorded(override, _chooses(override, is_group)) for override in parse_overrides(lines)]
    for one in recorded:
        if refused := _refusal(one, run_dir):
            raise ConfigError(f"{path}: {shown(one.line)}: {refused}")
    return recorded


def check_restored(lines: Sequence[tuple[str, str]], run_dir: Path) -> None:
    """Check that overrides made of a saved config, with the keys that they are to set, set these and no others.

    Raises:
        ConfigError: a key of the config would be read as something else, such as a choice from a group.
    """
    for (key, _), override in zip(lines, parse_overrides([line for _, line in lines]), strict=True):
        plain = KEY.fullmatch(key) and override.key_or_group == key and override.package is None
        if not plain or _sets_hydra(override) or override.is_sweep_override():
            raise ConfigError(f"{run_dir}: {shown(key)}: not a key that a run's config has")


def _chooses(override: Override, is_group: Callable[[str], bool]) -> bool:
    key = override.key_or_group
    return "/" in key or override.package is not None or (is_group(key) and not isinstance(override.value(), dict))


def _refusal(recorded: Recorded, run_dir: Path) -> str | None:
    """Return why a run of lmtrain's own would not have recorded an override; None if it may have."""
    override = recorded.override
    if _sets_hydra(override):
        return "sets Hydra itself, which no run's own overrides do"
    if not recorded.key:
        return "has no key"
    if override.is_sweep_override():
        return "several values, where a run has one"
    if not recorded.chooses:
        return None
    package = override.package
    if package is not None and not (KEY.fullmatch(package) and package.partition(".")[0] in PACKAGES):
        return f"puts a choice into {shown(package)!r}, which no run's own overrides do"
    for name in _chosen_names(override):
        if not PLAIN_NAME.fullmatch(name) or ".." in name:
            return "a choice of a saved run is a plain name, without a path out of the group's folder"
        if lies_in_a_run(recorded.key, name, run_dir):
            return "chooses a config that lies in a run's directory, where others may have put it"
    return None


def _sets_hydra(override: Override) -> bool:
    """Return whether an override sets Hydra, by its key or by its package, as in `+data@hydra.run=…`."""
    return any((name or "").startswith("hydra") for name in (override.key_or_group, override.package))


def _chosen_names(override: Override) -> Iterator[str]:
    value: Any = override.value()
    for name in value if isinstance(value, list) else [value]:
        if name is not None and name != "":  # `~data`, `experiments=null`
            yield str(name)
