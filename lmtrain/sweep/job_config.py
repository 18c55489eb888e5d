"""Composes and checks the configs of a sweep's jobs before any of them starts."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmtrain.config.check import check
from lmtrain.config.compose import Composition, compose_with_notes, without_hydra
from lmtrain.config.conf_source import naming_origins
from lmtrain.config.overrides import search_path_override
from lmtrain.config.preflight import preflight
from lmtrain.config.recorded.trust import names_that_need_trust
from lmtrain.errors import ConfigError
from lmtrain.run.directory import holds_run
from lmtrain.run.several.local_processes import WORLD_SIZE_KEY
from lmtrain.sweep.job import Job
from lmtrain.terminal.console import console


@dataclass(frozen=True)
class JobConfig:
    """A job's config.

    Attributes:
        config: The resolved config in plain containers.
        to_trust: The names of user classes that a resume of the job must trust.
        notes: Remarks about surprising points of the composition.
    """

    config: Mapping[str, Any]
    to_trust: Sequence[str]
    notes: Sequence[str]


def check_job_config(overrides: tuple[str, ...], search_path: tuple[str, ...]) -> None:
    """Raise ConfigError if a job's config has a mistake; the data is not read."""
    composition = _compose_job(overrides, search_path)
    with naming_origins(overrides, composition.choices):
        check(composition.config)


@cache  # needed several times: to check, run, show and report the job
def job_config(overrides: tuple[str, ...], search_path: tuple[str, ...], directory: Path | None) -> JobConfig:
    """Compose and check the config that the job's process composes.

    If `directory` already has a run, its data is not prepared again, and the checkpoint that it was forked from may be
    missing. The result is cached, because a config that was valid once stays valid.

    Raises:
        ConfigError: the config or the data has a mistake; the message names it.
    """
    composition = _compose_job(overrides, search_path)
    composed = composition.config
    to_trust = names_that_need_trust(composed)
    begun = directory is not None and holds_run(directory)
    with naming_origins(overrides, composition.choices):
        plain: Any = OmegaConf.to_container(preflight(composed, begun=begun))
    return JobConfig(plain, to_trust, composition.notes)


def most_processes(jobs: Iterable[Job], search_path: tuple[str, ...]) -> int:
    """Return how many processes the jobs of a sweep need at most for one of them: `parallel.world_size`."""
    most = 1
    for job in jobs:
        with contextlib.suppress(ConfigError):  # reported when the job starts
            most = max(most, processes_in(_compose_job(job.overrides, search_path).config))
    return most


def processes_in(composed: DictConfig) -> int:
    """Return how many processes a composed config asks for; 1 also for a wrong value, which its check reports."""
    size = OmegaConf.select(composed, WORLD_SIZE_KEY)
    return size if isinstance(size, int) and size > 0 else 1


def show_notes(jobs: Iterable[JobConfig]) -> None:
    """Print the notes about the configs of a sweep's jobs, each note once."""
    for note in dict.fromkeys(note for job in jobs for note in job.notes):
        console.print(note, style="yellow")


def sweep_search_path(hydra_settings: Any) -> list[str]:
    """Return the override that gives a sweep's jobs additional config folders; empty if there are none."""
    given = [source.path for source in hydra_settings.runtime.config_sources if source.provider == "command-line"]
    return search_path_override(given, hydra_settings.searchpath or ())


@cache
def _compose_job(overrides: tuple[str, ...], search_path: tuple[str, ...]) -> Composition:
    composition = compose_with_notes([*search_path, *overrides])
    without_hydra(composition.config)
    return composition
