"""Checks that the config of a saved run makes this process write files and read text only in the current folder.

Paths from the user's own configs and command line are not restricted.
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

RUN_VALUE = re.compile(r"\$\{(?!hydra[.}])([\w.]+)\}")  # a config value, such as ${name}, in one of Hydra's settings
GLOB = re.compile(r"[*?[]")
DATA_FOLDER = "LMTRAIN_DATA"  # the environment variable that moves all data to another folder


def check_run_folder(composed: DictConfig, given: Sequence[Override], run_dir: Path) -> None:
    """Check that the directory of a new run or sweep is where the user's own settings put it.

    The settings contain values of the run's config, by default its name.

    Args:
        composed: The composed config, with Hydra's settings.
        given: The command's own overrides.
        run_dir: The saved run.

    Raises:
        ConfigError: The values of the run would lead to another place.
    """
    keys = {override.key_or_group for override in given}
    if "name" not in keys:
        name = str(composed.get("name"))
        _check_possible("name", name, run_dir)
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ConfigError(f"{run_dir}: name={shown(name)}: leads out of outputs/; give another name with name=NAME")
    for kind in ("run", "sweep"):
        written = str(OmegaConf.to_container(composed.hydra[kind])["dir"])  # type: ignore[index,call-overload]
        values = [value for value in RUN_VALUE.finditer(written) if value[1] not in keys]
        if not values or f"hydra.{kind}.dir" in keys:
            continue
        value = values[0]
        folder = Path(_resolved(composed, kind, written))
        _check_possible(value[1], str(folder), run_dir)
        base = Path(_resolved(composed, kind, written[: value.start()]) + "x").parent
        if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(base)):
            raise ConfigError(
                f"{run_dir}: hydra.{kind}.dir={shown(str(folder))}: leads out of {base} because of the run's "
                f"{value[1]}; give another value with {value[1]}=…"
            )


def _resolved(composed: DictConfig, kind: str, text: str) -> str:
    """Return the resolved value of `hydra.run.dir` or `hydra.sweep.dir` if it were set to `text`."""
    changed = copy.deepcopy(composed)
    OmegaConf.update(changed, f"hydra.{kind}.dir", text)
    return str(changed.hydra[kind].dir)


def check_preparation(lines: Sequence[str], given: Sequence[Override], run_dir: Path) -> None:
    """Check that a saved run does not cause data to be prepared outside the current folder, or from text outside it.

    Existing data may be anywhere.

    Args:
        lines: The overrides that compose the run.
        given: The command's own overrides, which follow them.
        run_dir: The saved run.

    Raises:
        ConfigError: The run would cause such a preparation.
    """
    own = [override for override in parse_overrides(lines) if _of_data(override.key_or_group)]
    # Values that come with a choice are the user's own, or shipped.
    keys = [each.key_or_group for each in own if "." in each.key_or_group or isinstance(each.value(), dict)]
    if not keys:
        return
    cfg = compose([*lines, *(_first_value(override) for override in given if not override.is_interval_sweep())])
    sweeps = any(override.is_sweep_override() and _of_data(override.key_or_group) for override in given)
    if not sweeps and (cfg.get("prepare") is None or _has_tokens(cfg)):
        return
    try:
        paths = [found for key in keys for found in _paths_below(key, cfg)]
    except OmegaConfBaseException:  # the config is invalid, which a later check reports
        return
    for key, value in paths:
        if _is_given(key, given):
            continue
        _check_possible(key, value, run_dir)
        if _leads_out(value):
            recipe = shlex.join(str(override.input_line) for override in own)
            raise ConfigError(
                f"{run_dir}: {key}={shown(value)}: leads out of this folder, but a saved run may only prepare data and "
                f"read text inside it; if you want that data, prepare it first: python -m lmtrain prepare {recipe}"
            )


def _check_possible(key: str, path: str, run_dir: Path) -> None:
    """Raise ConfigError for a text that can't be a path: YAML has escapes for NUL and lone surrogates."""
    try:
        readable = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        readable = False
    if not readable:
        raise ConfigError(f"{run_dir}: {key}={shown(path)}: has a character that no path can have")


def _of_data(key: str) -> bool:
    return re.split(r"[./@]", key)[0] in ("data", "prepare")


def _paths_below(key: str, cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """Yield keys and texts at or below a key that may be paths for preparing data: `data.path` and `prepare.*`."""
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
    """Return whether a path or glob leads out of the current folder and the user's data folder, also through a link."""
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
    except (ValueError, OSError):  # no file matches
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
