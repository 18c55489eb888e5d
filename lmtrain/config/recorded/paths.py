"""Where a saved run would have this process write, and what text it would have it read, held to the current folder.

What the user's own configs and command line say is not held to anything.
"""

import copy
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmtrain.config.compose import compose
from lmtrain.config.overrides import parse_overrides
from lmtrain.data.text.matching import matching_files
from lmtrain.errors import ConfigError
from lmtrain.files.links import stays_inside
from lmtrain.terminal.as_text import shown

OF_THE_RUN = re.compile(r"\$\{(?!hydra[.}])([\w.]+)\}")  # in a setting of Hydra's: a value of the config, as ${name}
GLOB = re.compile(r"[*?[]")
DATA_FOLDER = "LMTRAIN_DATA"  # the variable by which a user moves all data elsewhere


def check_run_folder(composed: DictConfig, given: Sequence[Override], run_dir: Path) -> None:
    """Check that the directories of a new run or sweep lie where the user's own settings have them.

    These have values of the run's config in them, its name by default. `composed` has Hydra's settings; `given` are the
    command's own overrides.

    Raises:
        ConfigError: the run's values would lead to another place.
    """
    keys = {override.key_or_group for override in given}
    if "name" not in keys:
        name = str(composed.get("name"))
        _check_possible("name", name, run_dir)
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ConfigError(f"{run_dir}: name={shown(name)}: leads out of outputs/; give another, name=NAME")
    for kind in ("run", "sweep"):
        written = str(OmegaConf.to_container(composed.hydra[kind])["dir"])  # type: ignore[index,call-overload]
        values = [value for value in OF_THE_RUN.finditer(written) if value[1] not in keys]
        if not values or f"hydra.{kind}.dir" in keys:
            continue
        value = values[0]
        folder = Path(_resolved(composed, kind, written))
        _check_possible(value[1], str(folder), run_dir)
        base = Path(_resolved(composed, kind, written[: value.start()]) + "x").parent
        if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(base)):
            raise ConfigError(
                f"{run_dir}: hydra.{kind}.dir={shown(str(folder))}: leads out of {base} by the run's "
                f"{value[1]}; give another, {value[1]}=…"
            )


def _resolved(composed: DictConfig, kind: str, text: str) -> str:
    """Return what a text in the place of `hydra.run.dir` or `hydra.sweep.dir` becomes."""
    changed = copy.deepcopy(composed)
    OmegaConf.update(changed, f"hydra.{kind}.dir", text)
    return str(changed.hydra[kind].dir)


def check_preparation(lines: Sequence[str], given: Sequence[Override], run_dir: Path) -> None:
    """Check that a saved run has no data made in another folder than the current one, nor of text that lies elsewhere.

    Data that is there already may lie anywhere. `lines` are the overrides that compose the run, and `given` those of
    the command, which follow them.

    Raises:
        ConfigError: data would be made so.
    """
    own = [override for override in parse_overrides(lines) if _of_data(override.key_or_group)]
    # What a choice brings is the user's own, or shipped.
    keys = [one.key_or_group for one in own if "." in one.key_or_group or isinstance(one.value(), dict)]
    if not keys:
        return
    cfg = compose([*lines, *(_first_value(override) for override in given if not override.is_interval_sweep())])
    sweeps = any(override.is_sweep_override() and _of_data(override.key_or_group) for override in given)
    if not sweeps and (cfg.get("prepare") is None or _has_tokens(cfg)):
        return
    try:
        paths = [found for key in keys for found in _paths_below(key, cfg)]
    except OmegaConfBaseException:  # what is given makes it no config at all, which is said where it is checked
        return
    for key, value in paths:
        if _is_given(key, given):
            continue
        _check_possible(key, value, run_dir)
        if _leads_out(value):
            recipe = shlex.join(str(override.input_line) for override in own)
            raise ConfigError(
                f"{run_dir}: {key}={shown(value)}: leads out of this folder, where a saved run may not have data made "
                f"or text read; if you want that data, make it first: python -m lmtrain prepare {recipe}"
            )


def _check_possible(key: str, path: str, run_dir: Path) -> None:
    """Raise ConfigError for a text that can't be a path: YAML has escapes for NUL and for halves of characters."""
    try:
        readable = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        readable = False
    if not readable:
        raise ConfigError(f"{run_dir}: {key}={shown(path)}: has a character that no path can have")


def _of_data(key: str) -> bool:
    return re.split(r"[./@]", key)[0] in ("data", "prepare")


def _paths_below(key: str, cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """Yield what may be paths at or below a key, of those that matter when data is made: `data.path`, `prepare.*`."""
    node = OmegaConf.select(cfg, key)
    resolved = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    for path, text in _strings(key, resolved):
        if path == "data.path" or (path.startswith("prepare.") and not path.endswith("._target_")):
            yield path, text


def _strings(key: str, node: Any) -> Iterator[tuple[str, str]]:
    match node:
        case dict():
            for name, value in node.items():
                yield from _strings(f"{key}.{name}", value)
        case list():
            for index, value in enumerate(node):
                yield from _strings(f"{key}.{index}", value)
        case str():
            yield key, node


def _leads_out(text: str) -> bool:
    """Return whether a path or a pattern leads out of the current folder and the user's own data, also by a link."""
    path = Path.cwd() / Path(text).expanduser()
    places = [Path.cwd(), *(Path(os.environ[name]) for name in [DATA_FOLDER] if os.environ.get(name))]
    if ".." in path.parts:
        return True
    magic = GLOB.search(text)
    if magic is None:
        return not any(stays_inside(path, place) for place in places)
    start = Path.cwd() / Path(f"{text[: magic.start()]}x").expanduser().parent
    if not any(start == place or stays_inside(start, place) for place in places):
        return True
    try:
        found = matching_files([text])
    except (ValueError, OSError):  # there are none
        return False
    return not all(any(stays_inside(path, place) for place in places) for path in found.values())


def _is_given(key: str, given: Sequence[Override]) -> bool:
    return any(f"{key}.".startswith(f"{override.key_or_group}.") for override in given)


def _first_value(override: Override) -> str:
    if not override.is_sweep_override():
        return str(override.input_line)
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"


def _has_tokens(cfg: DictConfig) -> bool:
    path = OmegaConf.select(cfg, "data.path")
    return path is not None and any(Path(path).glob("*.bin"))
