"""Composes a run's config from its groups.

Hydra alone accepts a misspelt key after `+`, an unknown key in an experiment file, and `lr=abc`. This module and
`check` raise a `ConfigError` for each, with the key, the value and the way out, before torch is imported or anything is
written.
"""

import os
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_loader import ConfigLoader
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

from lmtrain.config.batch_size import refuse_given_accumulation
from lmtrain.config.conf_source import IN_EVERY_MENU, MENU, ConfSource, foreign_menu, menu_choices
from lmtrain.config.experiments_source import GROUP, ExperimentsSource
from lmtrain.config.hydra_internals import forget_stored_config
from lmtrain.config.keys import did_you_mean, is_open_mapping, key_paths
from lmtrain.config.shipped import shipped
from lmtrain.config.written_for.mismatches import (
    FORK,
    GROUPS,
    ExperimentFile,
    end_of_branch,
    forked_run,
    keys_to_leave_out,
    known_keys,
    mismatches,
    reading_experiments,
    without_left_out,
)
from lmtrain.config.written_for.notes import notes_on
from lmtrain.errors import ConfigError
from lmtrain.terminal.paths import argument_with_home, short_path, with_home

HYDRA_VERSION_BASE = "1.3"
_composing = threading.RLock()  # Hydra has only one state per process
NOT_A_MENU = f"not read, because it lacks groups that every run needs: {', '.join(IN_EVERY_MENU)}"


class UserSearchPath(SearchPathPlugin):
    """Puts the current folder's `conf` and `experiments` before the shipped ones, so that they can shadow them."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("lmtrain", f"experiments://{shipped('experiments')}")
        for folder, scheme in (("experiments", "experiments"), ("conf", "conf")):
            own = Path.cwd() / folder
            if own.is_dir() and own != shipped(folder):
                search_path.prepend("user", f"{scheme}://{own}")


def set_up_hydra() -> None:
    """Register lmtrain's config sources and resolvers, unless Hydra has them already."""
    if UserSearchPath in Plugins.instance().discover(SearchPathPlugin):
        return
    Plugins.instance().register(ExperimentsSource)
    Plugins.instance().register(ConfSource)
    Plugins.instance().register(UserSearchPath)
    forget_stored_config("hydra/launcher", "submitit_slurm")  # `conf/` has another one of this name
    OmegaConf.register_new_resolver("run_id", lambda: os.urandom(2).hex(), use_cache=True, replace=True)


@dataclass(frozen=True)
class Composition:
    """A composed config.

    Attributes:
        config: The config, unresolved and unchecked, with Hydra's own settings under the key `hydra`.
        choices: The choice of each config group.
        notes: Messages about the keys in `left_out`, for the user.
        left_out: Keys left out of experiments and of a forked run because they do not fit the choices.
    """

    config: DictConfig
    choices: Mapping[str, Any]
    notes: Sequence[str] = ()
    left_out: Mapping[str, Collection[str]] = field(default_factory=dict)


def compose(overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """Return the config that Hydra composes from the main config and the overrides, unresolved and unchecked.

    `with_hydra` keeps Hydra's own settings under the key `hydra`.

    Raises:
        ConfigError: An override can't be parsed, or a key, group or choice is unknown.
    """
    config = compose_with_notes(overrides).config
    return config if with_hydra else without_hydra(config)


def compose_with_notes(overrides: Sequence[str]) -> Composition:
    """Compose like `compose`, and also return the choices and the notes to show before a run starts."""
    with _composing:
        return _compose_alone(overrides)


def _compose_alone(overrides: Sequence[str]) -> Composition:
    set_up_hydra()
    overrides = [argument_with_home(text) for text in overrides]
    outer = GlobalHydra.instance().hydra  # a sweep composes its jobs while Hydra itself is running
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(shipped("conf")), job_name="lmtrain", version_base=HYDRA_VERSION_BASE):
            composition = _compose_for_choices(overrides)
            _put_homes(composition.config)
            return composition
    except ConfigError:
        raise
    except RecursionError as error:
        raise ConfigError("an override or a config file is nested too deeply") from error
    except YAMLError as error:
        raise ConfigError(" ".join(str(error).split())) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: trainer=null, for example
        raise ConfigError(explain_hydra_error(error, overrides)) from error
    finally:
        GlobalHydra.instance().hydra = outer


def _put_homes(composed: DictConfig) -> None:
    """Expand `~` in the paths that are used before the config is checked, in place."""
    for parent, key in ((composed, "fork"), (composed.get("hydra", {}).get("run", {}), "dir")):
        raw: Any = OmegaConf.to_container(parent) if parent else {}  # unresolved
        if isinstance(text := raw.get(key), str):
            parent[key] = with_home(text)


def _compose_for_choices(overrides: Sequence[str]) -> Composition:
    """Compose without those values of experiments and of a forked run that were written for other choices."""
    fork_at = max((at for at, text in enumerate(overrides) if text.startswith(FORK)), default=0)
    end = end_of_branch(overrides[fork_at:], overrides[:fork_at])
    overrides = [*overrides, *end]
    origins, own = overrides[:fork_at], overrides[fork_at:]
    fork, trial = None, {}
    if {*GROUPS} & _keys(own) and origins:
        before = choices_of(_read_and_compose(origins, {})[0])
        fork = forked_run(OverridesParser.create().parse_overrides(list(origins)), own[0].removeprefix(FORK), before)
        trial = {fork.path: [key for group in GROUPS for key in fork.values(group)]}
    composed, files = _read_and_compose(overrides, trial)
    with_all: Any = OmegaConf.to_container(composed)
    files = {fork.path: fork, **files} if fork is not None else files
    found = mismatches(files, choices_of(composed), _keys(overrides), menu_choices)
    left_out = keys_to_leave_out(found)
    if left_out != trial:
        composed, _ = _read_and_compose(overrides, left_out)
    if left_out and (fewer := keys_to_leave_out(found, kept=known_keys(found, composed))) != left_out:
        left_out = fewer
        composed, _ = _read_and_compose(overrides, left_out)
    given = _keys(own) | (_keys(origins) - {*left_out.get(fork.path if fork else "", ())})
    notes = notes_on(found, left_out, given, with_all, OmegaConf.to_container(composed))
    notes += [f"the fork decays from its beginning on: {text}" for text in end]
    if (menu := foreign_menu()) is not None:
        notes.append(f"{short_path(menu)}: {NOT_A_MENU}")
    _refuse_without_package(composed, files)
    trainers = {short_path(file.source): file.values("trainer") for file in files.values()}
    refuse_given_accumulation(composed, own, trainers)
    return Composition(composed, dict(choices_of(composed)), notes, left_out)


def _refuse_without_package(composed: DictConfig, files: Mapping[str, ExperimentFile]) -> None:
    """Raise ConfigError if the values of an experiment are in a group called experiments instead of the config."""
    if GROUP not in composed:
        return
    for file in files.values():
        if file.package != "_global_":
            raise ConfigError(
                f"{short_path(file.source)}: its first line must be `# @package _global_`; without it, its values go "
                f"into a group called {GROUP}, which nothing reads"
            )


def _read_and_compose(
    overrides: Sequence[str], left_out: Mapping[str, Collection[str]]
) -> tuple[DictConfig, Mapping[str, ExperimentFile]]:
    with reading_experiments(left_out) as reading:
        lines = without_left_out(overrides, left_out)
        return hydra.compose(MENU, lines, return_hydra_config=True), reading.files


def _keys(overrides: Sequence[str]) -> set[str]:
    """Return the keys and groups set by overrides."""
    return {re.split("[=@]", text.lstrip("+~"))[0] for text in overrides}


def choices_of(composed: DictConfig) -> Mapping[str, Any]:
    """Return the choice of each config group, without the suffix `.yaml`; `composed` must have Hydra's settings."""
    choices = composed.hydra.runtime.choices.items()
    return {str(group): _without_suffix(choice) for group, choice in choices}


def _without_suffix(choice: Any) -> Any:
    return choice.removesuffix(".yaml") if isinstance(choice, str) else choice


def without_hydra(composed: DictConfig) -> DictConfig:
    """Remove Hydra's settings from a composed config, in place, and return it."""
    with open_dict(composed):
        composed.pop("hydra")
    return composed


def hydra_folder_texts(composed: DictConfig, hydra_settings: Any) -> dict[str, str]:
    """Return the files that Hydra itself would write into `.hydra/` at the start of a run, as texts by name."""
    return {
        "config.yaml": OmegaConf.to_yaml(composed),
        "hydra.yaml": OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra_settings})),
        "overrides.yaml": OmegaConf.to_yaml(hydra_settings.overrides.task),
    }


def explain_hydra_error(error: Exception, overrides: Sequence[str]) -> str:
    """Return the message for an error of Hydra: the key, the value and the nearest valid ones."""
    match error:
        case OverrideParseException():
            reason = str(error).splitlines()[0]
            return f"{error.override}: not a valid override ({reason}); write key=value, and quote special characters"
        case MissingConfigException(missing_cfg_file=str(missing), options=options):
            group, _, choice = missing.rpartition("/")
            options = options or _choices(group)  # Hydra gives none for a group with several choices at once
            nearest = did_you_mean(choice, options)
            return f"{group}={choice}: no such choice{nearest}" + (
                f" (choices: {', '.join(options)})" if options else ""
            )
    message = str(error)
    if without := [text for text in overrides if re.fullmatch(r"\w+=(null)?", text)]:
        return f"{without[0]}: this group needs a choice; give one, or leave it out for the default"
    if "Ambiguous value" in message:
        several = next((text for text in overrides if "," in text), "")
        return f"{several}: has several values; give one, or train with -m to sweep over them"
    unknown = re.search(r"Could not override '([^']+)'", message)
    given = [name for text in overrides for name in _names_in(text)]
    # For a key set in a file, Hydra's message names the file, and composing again would fail again.
    if isinstance(error, ConfigCompositionException) and unknown and unknown[1] in given:
        key = unknown[1]
        parser = OverridesParser.create()
        others = [
            text
            for text in overrides
            if key not in _names_in(text) and not parser.parse_override(text).is_sweep_override()
        ]
        value = next((text.split("=", 1)[1] for text in overrides if text.startswith(f"{key}=")), "")
        try:
            composed = compose(others)
        except ConfigError:
            composed = OmegaConf.create()
        valid = [*key_paths(OmegaConf.to_container(composed)), "experiments"]
        menu = foreign_menu()
        about_menu = f" ({short_path(menu)}: {NOT_A_MENU})" if menu else ""
        new = f"; +{key}={value} adds it" if is_open_mapping(composed, key.rpartition(".")[0]) else ""
        return f"{key}={value}: unknown key{did_you_mean(key, valid)}{new}{about_menu}"
    cause = error.__cause__
    first, *more = message.splitlines()
    if first.endswith(":") and more:
        hint = (
            "; choose from a group in the defaults list, as in `- override /logger: []`"
            if "ListConfig" in message
            else ""
        )
        return f"{first} {more[0].strip()}{hint}"
    return first + (f": {str(cause).splitlines()[0]}" if cause and str(cause) else "")


def _names_in(override: str) -> tuple[str, str]:
    """Return the key of an override with and without its package: `a@b` and `a` for `+a@b=c`."""
    name = override.lstrip("+~").partition("=")[0].strip()
    return name, name.partition("@")[0]


def _choices(group: str) -> list[str]:
    with config_loader() as loader:
        return loader.get_group_options(group)


@contextmanager
def config_loader() -> Iterator[ConfigLoader]:
    """Yield Hydra's config loader, which knows the choices of each group."""
    set_up_hydra()
    with hydra.initialize_config_dir(str(shipped("conf")), job_name="lmtrain", version_base=HYDRA_VERSION_BASE):
        yield GlobalHydra.instance().config_loader()
