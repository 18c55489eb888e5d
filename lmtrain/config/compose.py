"""Composes a run's config from its groups.

Hydra alone takes a misspelt key behind `+`, an unknown key in an experiment file and `lr=abc`. Here, and in `check`,
each is a `ConfigError` that names the key, the value and the way out, before torch is imported or anything is written.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lmtrain.config.check import did_you_mean, key_paths
from lmtrain.config.experiments_source import ExperimentsSource
from lmtrain.config.shipped import shipped
from lmtrain.errors import ConfigError
from lmtrain.terminal.paths import argument_with_home, with_home

HYDRA_VERSION_BASE = "1.3"
MENU = "config"  # conf/config.yaml


class UserSearchPath(SearchPathPlugin):
    """Puts the current folder's `conf` and `experiments` before the shipped ones, so that they can shadow them."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("lmtrain", f"experiments://{shipped('experiments')}")
        for folder, scheme in (("experiments", "experiments"), ("conf", "file")):
            own = Path.cwd() / folder
            if own.is_dir() and own != shipped(folder):
                search_path.prepend("user", f"{scheme}://{own}")


def set_up_hydra() -> None:
    """Register where configs are found, and what they can compute; again only if Hydra has started its plugins anew."""
    if UserSearchPath in Plugins.instance().discover(SearchPathPlugin):
        return
    Plugins.instance().register(ExperimentsSource)
    Plugins.instance().register(UserSearchPath)
    OmegaConf.register_new_resolver("run_id", lambda: os.urandom(2).hex(), use_cache=True, replace=True)


def compose(overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """Return the config that Hydra composes from the menu and the overrides, unresolved and unchecked.

    `with_hydra` keeps Hydra's own settings in it, as the key `hydra`.

    Raises:
        ConfigError: an override that can't be parsed, an unknown key, group or choice.
    """
    set_up_hydra()
    overrides = [argument_with_home(text) for text in overrides]
    outer = GlobalHydra.instance().hydra  # a sweep composes its jobs while Hydra itself is running
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(shipped("conf")), job_name="lmtrain", version_base=HYDRA_VERSION_BASE):
            return _with_homes(hydra.compose(MENU, overrides, return_hydra_config=with_hydra))
    except YAMLError as error:
        raise ConfigError(" ".join(str(error).split())) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # the last: trainer=null, say
        raise ConfigError(explain_hydra_error(error, overrides)) from error
    finally:
        GlobalHydra.instance().hydra = outer


def _with_homes(composed: DictConfig) -> DictConfig:
    """Put the user's home into the paths that are used before the config is checked, in place; return the config."""
    for parent, key in ((composed, "fork"), (composed.get("hydra", {}).get("run", {}), "dir")):
        raw: Any = OmegaConf.to_container(parent) if parent else {}  # unresolved
        if isinstance(text := raw.get(key), str):
            parent[key] = with_home(text)
    return composed


def without_hydra(composed: DictConfig) -> DictConfig:
    """Remove Hydra's settings from a composed config, in place, and return it."""
    with open_dict(composed):
        composed.pop("hydra")
    return composed


def hydra_folder_texts(composed: DictConfig, hydra_settings: Any) -> dict[str, str]:
    """Return what Hydra itself would write into `.hydra/` when it starts a run, by file name."""
    return {
        "config.yaml": OmegaConf.to_yaml(composed),
        "hydra.yaml": OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra_settings})),
        "overrides.yaml": OmegaConf.to_yaml(hydra_settings.overrides.task),
    }


def explain_hydra_error(error: Exception, overrides: Sequence[str]) -> str:
    """Return an error of Hydra's in a user's terms: the key, the value and the nearest valid ones."""
    match error:
        case OverrideParseException():
            reason = str(error).splitlines()[0]
            return f"{error.override}: not a valid override ({reason}); write key=value, and quote special characters"
        case MissingConfigException(missing_cfg_file=str(missing), options=options):
            group, _, choice = missing.rpartition("/")
            options = options or _choices(group)  # Hydra gives none where several can be chosen
            nearest = did_you_mean(choice, options)
            return f"{group}={choice}: no such choice{nearest}" + (
                f" (there are {', '.join(options)})" if options else ""
            )
    message = str(error)
    if without := [text for text in overrides if re.fullmatch(r"\w+=(null)?", text)]:
        return f"{without[0]}: this group needs a choice"
    if "Ambiguous value" in message:
        several = next((text for text in overrides if "," in text), "")
        return f"{several}: several values; add -m for a sweep over them"
    unknown = re.search(r"Could not override '([^']+)'", message)
    if isinstance(error, ConfigCompositionException) and unknown:
        key = unknown[1]
        parser = OverridesParser.create()
        others = [
            text
            for text in overrides
            if re.split("[=@]", text.lstrip("+~"))[0] != key and not parser.parse_override(text).is_sweep_override()
        ]
        value = next((text.split("=", 1)[1] for text in overrides if text.startswith(f"{key}=")), "")
        try:
            valid = key_paths(OmegaConf.to_container(compose(others)))
        except ConfigError:
            valid = []
        return f"{key}={value}: unknown key{did_you_mean(key, valid)}"
    cause = error.__cause__
    first, *more = message.splitlines()
    if first.endswith(":") and more:
        hint = (
            "; a group's choice stands in the defaults list, as `- override /logger: []`"
            if "ListConfig" in message
            else ""
        )
        return f"{first} {more[0].strip()}{hint}"
    return first + (f": {str(cause).splitlines()[0]}" if cause and str(cause) else "")


def _choices(group: str) -> list[str]:
    with hydra.initialize_config_dir(str(shipped("conf")), job_name="lmtrain", version_base=HYDRA_VERSION_BASE):
        return GlobalHydra.instance().config_loader().get_group_options(group)
