"""Wraps everything that lmtrain uses from Hydra's private modules and attributes in functions with plain names.

A new version of Hydra may change any of it. `tests/config/test_hydra_internals.py` checks the behaviour used here.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.config_source import ConfigSource
from hydra.plugins.plugin import Plugin
from hydra.types import HydraContext
from omegaconf import DictConfig

from lmtrain.errors import ConfigError
from lmtrain.terminal.options import unknown_option

INSTALLED_AS = "hydra_plugins.lmtrain"  # Hydra accepts launchers and sweepers only from `hydra_plugins`


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the values of Hydra's flags (`--cfg`, `-m`, …) in a command line; the rest is in `overrides`.

    Raises:
        ConfigError: A flag is unknown or lacks its value.
    """
    parser: argparse.ArgumentParser = get_args_parser()
    parser.exit_on_error = False
    try:
        flags, unknown = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error.argument_name}: {error.message}") from error
    if unknown:
        raise unknown_option(unknown[0], parser)
    return flags


def context_of_one_run(composed: DictConfig) -> HydraContext:
    """Return the context in which `hydra.core.utils.run_job` runs a composed config.

    It has the callbacks named in `hydra.callbacks`. Its config loader finds nothing, because `run_job` loads nothing.
    """
    return HydraContext(ConfigLoaderImpl(ConfigSearchPathImpl()), Callbacks(composed))


def test_for_groups(folder: Path) -> Callable[[str], bool]:
    """Return a function that tells whether Hydra treats a key as a config group.

    `folder` contains the main config; Hydra's plugins add the other places in which configs are found.
    """
    repository = ConfigRepository(create_config_search_path(f"file://{folder}"))
    return lambda key: bool(repository.group_exists(key))


def forget_stored_config(group: str, name: str) -> None:
    """Remove a config that a plugin has stored with Hydra, so that it is no schema for a file of the same name."""
    Plugins.instance()  # imports the plugins, which store their configs
    configs: Any = ConfigStore.instance().repo
    for part in group.split("/"):
        configs = configs.get(part, {})
    configs.pop(f"{name}.yaml", None)


def folder_source(provider: str, folder: Path) -> ConfigSource:
    """Return the source with which Hydra reads the YAML files in a folder."""
    # Imported here, because Hydra's search for plugins would make a second class of it.
    from hydra._internal.core_plugins.file_config_source import FileConfigSource

    source: ConfigSource = FileConfigSource(provider=provider, path=f"file://{folder}")
    return source


def split_into_batches(overrides: Sequence[Override], max_batch_size: int | None) -> list[list[list[str]]]:
    """Return the command line of each job of a grid sweep, in batches of that size at most (None for one batch)."""
    # Imported here, because Hydra's search for plugins would make a second class of it.
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    batches: list[list[list[str]]] = BasicSweeper.split_arguments(list(overrides), max_batch_size)
    return batches


def failure_of(returned: JobReturn) -> Any:
    """Return the exception that stopped a job, or None if it completed; `return_value` would raise it."""
    return returned._return_value if returned.status is JobStatus.FAILED else None


def register_as_installed(plugin: type[Plugin]) -> None:
    """Register a launcher or sweeper of lmtrain with Hydra as `hydra_plugins.lmtrain.CLASS`."""
    module, plugin.__module__ = plugin.__module__, INSTALLED_AS
    try:
        Plugins.instance().register(plugin)
    finally:
        plugin.__module__ = module  # processes started by other launchers find the class by it
