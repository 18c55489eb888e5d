"""Parses and writes overrides in Hydra's grammar, and applies them to a composed config."""

import numbers
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from lmtrain.config.check import ROOT
from lmtrain.config.compose import explain_hydra_error
from lmtrain.config.keys import did_you_mean, key_paths
from lmtrain.errors import ConfigError

_MISSING = object()
RUNS = ("resume", "fork")  # keys whose value is a run directory


def quoted(value: str) -> str:
    """Return a text in double quotes for Hydra's override grammar; in a shell, put single quotes around it."""
    escaped = re.sub(r'(\\+)(?="|\Z)', r"\1\1", value)  # Hydra reads a backslash as escape only before a quote
    return '"' + escaped.replace('"', '\\"') + '"'


def search_path_override(folders: Sequence[str], searchpath: Sequence[str] = ()) -> list[str]:
    """Return an override that adds the folders of `--config-dir` to Hydra's search path; empty without folders."""
    path = [*searchpath, *(f"file://{Path(folder).absolute()}" for folder in folders)]
    return [f"hydra.searchpath=[{','.join(map(quoted, path))}]"] if path else []


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return a copy of a composed config with changed values, for a resumed run; its groups can't be changed.

    A part may be given a key that the config lacks, because the run may be older than the key; `check` must then say
    whether the part has it.
    """
    cfg = cfg.copy()
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise ConfigError(explain_hydra_error(error, overrides)) from error
    for override in parsed:
        key = override.key_or_group
        if override.is_sweep_override() or override.is_delete() or override.is_add():
            raise ConfigError(f"{override.input_line}: resume accepts only plain key=value overrides")
        if not has_key(cfg, key) and not _is_of_a_part(cfg, key):
            raise ConfigError(
                f"{key}={override.value()}: unknown key{did_you_mean(key, key_paths(OmegaConf.to_container(cfg)))}"
            )
        if isinstance(OmegaConf.select(cfg, key), DictConfig):
            raise ConfigError(f"{override.input_line}: a resumed run keeps its config groups; start a new run instead")
        OmegaConf.update(cfg, key, override.value(), force_add=True)
    return cfg


def has_key(cfg: Any, key: str) -> bool:
    """Return whether a config has a dotted key, also if its value is null."""
    return OmegaConf.select(cfg, key, default=_MISSING) is not _MISSING


def _is_of_a_part(cfg: DictConfig, key: str) -> bool:
    parent = key.rpartition(".")[0]
    node = OmegaConf.select(cfg, parent) if parent else None
    return "_target_" in node if isinstance(node, DictConfig) else key in ROOT


def listed_names(arguments: Sequence[str], key: str) -> list[str]:
    """Return the names in `key=a` or `key=[a,b]` on the command line; values saved in the run are ignored."""
    given = [text for text in arguments if text.partition("=")[0] == key]
    if not given:
        return []
    try:
        value = OverridesParser.create().parse_override(given[-1]).value()
    except Exception as error:
        raise ConfigError(f"{given[-1]}: write {key}=NAME or {key}=[NAME,NAME]") from error
    return [str(name) for name in value] if isinstance(value, list) else [str(value)]


def parse_overrides(lines: Sequence[str]) -> list[Override]:
    """Return overrides parsed by Hydra; raise ConfigError for a text that is not an override."""
    try:
        return OverridesParser.create().parse_overrides(list(lines))
    except OverrideParseException as error:
        raise ConfigError(f"{error.override}: not a valid override; write key=value") from error
    except RecursionError as error:
        raise ConfigError("an override is nested too deeply") from error


def refuse_several_runs(command: str, arguments: Sequence[str]) -> None:
    """Refuse a sweep, and a run to resume, for a command that takes the config of one new run.

    Raises:
        ConfigError: An argument means either; the message names the command.
    """
    for text in arguments:
        if text in ("-m", "--multirun"):
            raise ConfigError(f"{text}: {command} takes one config; give key=value overrides for it")
        if text.startswith("-") or "=" not in text:
            continue
        if text.lstrip("+~").startswith("resume=") and not text.endswith("=null"):
            raise ConfigError(
                f"{text}: {command} starts its own run; give the overrides that your run was started with"
            )
        try:
            several = any(override.is_sweep_override() for override in parse_overrides([text]))
        except ConfigError:
            continue  # reported with more details when the config is composed
        if several:
            raise ConfigError(f"{text}: has several values, and {command} takes one config; give one of them")


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """Return the overrides that set keys and groups given as a dict, such as `{"optimizer.lr": 1e-3, "model": "gpt2"}`.

    A key may begin with `+`, `++` or `~`, as on the command line; `~` with the value None deletes the key. The value of
    a group may be a dict of its values, such as `{"trainer": {"max_steps": 100}}`.

    Raises:
        TypeError: A key is not a string, or a value has no form in YAML.
    """
    lines = []
    for key, value in values.items():
        if not isinstance(key, str):
            raise TypeError(f"{key!r}: is not a config key; give a string")
        if key.startswith("~") and value is None:
            lines.append(key)
        elif key in RUNS and value is not None:
            lines.append(f"{key}={os.fspath(value)}")  # a path, which is not parsed with Hydra's grammar
        elif isinstance(value, Mapping) and "." not in key:
            lines += overrides_of({f"{key}.{name}": item for name, item in value.items()})
        else:
            lines.append(f"{key}={override_value(_plain(value, key))}")
    return lines


def _plain(value: Any, key: str) -> Any:
    """Return a value in types that YAML has: a path becomes text, a tuple a list, a NumPy number a Python number."""
    match value:
        case None | bool() | str():
            return value
        case numbers.Integral():
            return int(value)
        case numbers.Real():
            return float(value)
        case os.PathLike():
            return os.fspath(value)
        case Mapping():
            return {str(name): _plain(item, key) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item, key) for item in value]
    if hasattr(value, "tolist"):  # NumPy arrays and torch tensors
        return _plain(value.tolist(), key)
    raise TypeError(
        f"{key}: a {type(value).__name__} can't be a config value; give a number, a string, a list or a dict"
    )


def override_value(value: Any) -> str:
    """Return a value as text that Hydra's override grammar reads back as the same value."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return quoted(value)
        case list():
            return f"[{','.join(map(override_value, value))}]"
        case dict():  # in a list
            return f"{{{','.join(f'{key}:{override_value(item)}' for key, item in value.items())}}}"
    return repr(value)
