"""The configs of a sweep's jobs, composed and checked in the sweep's own process before any of them starts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lmtrain.config.check import check
from lmtrain.config.compose import Composition, compose_with_notes, without_hydra
from lmtrain.config.conf_source import naming_origins
from lmtrain.config.overrides import search_path_override
from lmtrain.config.preflight import preflight
from lmtrain.config.recorded.trust import names_that_need_trust
from lmtrain.run.directory import holds_run
from lmtrain.terminal.console import console


@dataclass(frozen=True)
class JobConfig:
    """A job's config, resolved and in plain containers, and the names that a resume of the job must trust.

    `notes` say what is surprising about how it was composed.
    """

    config: Mapping[str, Any]
    to_trust: Sequence[str]
    notes: Sequence[str]


def check_job_config(overrides: tuple[str, ...], search_path: tuple[str, ...]) -> None:
    """Raise ConfigError if a job's config is wrong; do not look at the data."""
    composition = _compose_job(overrides, search_path)
    with naming_origins(overrides, composition.choices):
        check(composition.config)


@cache  # wanted several times: to check the job, to run it, to show it, and to report how it ended
def job_config(overrides: tuple[str, ...], search_path: tuple[str, ...], directory: Path | None) -> JobConfig:
    """Return what the job's own process will compose, or has composed if its directory (None: none yet) holds a run.

    Of a run that has begun, the checkpoint that it is a fork of may be gone, and its data is not prepared again. The
    answer is kept: what could begin once can begin later.

    Raises:
        ConfigError: naming what is wrong with config or data.
    """
    composition = _compose_job(overrides, search_path)
    composed = composition.config
    to_trust = names_that_need_trust(composed)
    begun = directory is not None and holds_run(directory)
    with naming_origins(overrides, composition.choices):
        plain: Any = OmegaConf.to_container(preflight(composed, begun=begun))
    return JobConfig(plain, to_trust, composition.notes)


def show_notes(jobs: Iterable[JobConfig]) -> None:
    """Print what is surprising about the configs of a sweep's jobs, once for all of them."""
    for note in dict.fromkeys(note for job in jobs for note in job.notes):
        console.print(note, style="yellow")


def sweep_search_path(hydra_settings: Any) -> list[str]:
    """Return the override by which a sweep's jobs find configs beside the usual places; empty if there are none."""
    given = [source.path for source in hydra_settings.runtime.config_sources if source.provider == "command-line"]
    return search_path_override(given, hydra_settings.searchpath or ())


@cache
def _compose_job(overrides: tuple[str, ...], search_path: tuple[str, ...]) -> Composition:
    composition = compose_with_notes([*search_path, *overrides])
    without_hydra(composition.config)
    return composition
