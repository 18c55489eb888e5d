"""Overrides in Hydra's grammar: read, written, and applied to a composed config."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from lmtrain.config.compose import explain_hydra_error
from lmtrain.config.keys import did_you_mean, key_paths
from lmtrain.errors import ConfigError

_MISSING = object()


def quoted(value: str) -> str:
    """Return a text in double quotes, as Hydra's override grammar takes it; a shell's single quotes go around it."""
    before_a_quote = re.sub(r'(\\+)(?="|\Z)', r"\1\1", value)  # elsewhere a backslash is one
    return '"' + before_a_quote.replace('"', '\\"') + '"'


def search_path_override(folders: Sequence[str], searchpath: Sequence[str] = ()) -> list[str]:
    """Return the override by which configs are also found in folders that `--config-dir` gives; empty without any."""
    path = [*searchpath, *(f"file://{Path(folder).absolute()}" for folder in folders)]
    return [f"hydra.searchpath=[{','.join(map(quoted, path))}]"] if path else []


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return a copy of a composed config with values changed, for a run that goes on: its groups are chosen already."""
    cfg = cfg.copy()
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise ConfigError(explain_hydra_error(error, overrides)) from error
    for override in parsed:
        key = override.key_or_group
        if override.is_sweep_override() or override.is_delete() or override.is_add():
            raise ConfigError(f"{override.input_line}: resume takes plain key=value changes alone")
        if OmegaConf.select(cfg, key, default=_MISSING) is _MISSING:
            raise ConfigError(
                f"{key}={override.value()}: unknown key{did_you_mean(key, key_paths(OmegaConf.to_container(cfg)))}"
            )
        if isinstance(OmegaConf.select(cfg, key), DictConfig):
            raise ConfigError(f"{override.input_line}: a resumed run keeps its config groups; start a new run instead")
        OmegaConf.update(cfg, key, override.value())
    return cfg


def parse_overrides(lines: Sequence[str]) -> list[Override]:
    """Return overrides as Hydra reads them; raise ConfigError for a text that is no override."""
    try:
        return OverridesParser.create().parse_overrides(list(lines))
    except OverrideParseException as error:
        raise ConfigError(f"{error.override}: not a valid override; write key=value") from error
    except RecursionError as error:
        raise ConfigError("an override is nested too deeply") from error


def override_value(value: Any) -> str:
    """Return a value as Hydra's override grammar reads it back."""
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
