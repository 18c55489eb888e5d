"""Runs the best settings of a sweep again with seeds that the sweep has not used, so that their values are honest."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lmtrain.comparison.compared_run import ComparedRun
from lmtrain.comparison.looking.design import record_start
from lmtrain.comparison.looking.picked import CONFIRM_FOLDER
from lmtrain.comparison.runs import load_runs
from lmtrain.comparison.statistics.replicates import group_numbers
from lmtrain.config.overrides import parse_overrides
from lmtrain.config.recorded.paths import check_preparation
from lmtrain.config.recorded.recompose import overrides_to_recompose
from lmtrain.config.recorded.run_names import CONFIRM_FILE
from lmtrain.config.recorded.trust import read_saved
from lmtrain.errors import COMPLETED, ConfigError
from lmtrain.files.durable import write_atomically
from lmtrain.files.limited import read_json
from lmtrain.files.lock import locked_folder
from lmtrain.files.numbers import as_float
from lmtrain.run.directory import SEARCH_FILE
from lmtrain.run.identity import NEUTRAL_KEYS, config_hash
from lmtrain.sweep.job import Job
from lmtrain.sweep.job_config import job_config
from lmtrain.sweep.job_directory import make_sweep_directory, register_directory_resolver
from lmtrain.terminal.as_text import differences, printable

MAXIMIZE = "maximize"
MAX_SEED = 2**31


@dataclass(frozen=True)
class Picked:
    """A setting to run again: a run that has it, its name, and the mean objective of its runs in the sweep."""

    run: Path
    title: str
    objective: float


@dataclass(frozen=True)
class Confirmation:
    """The plan of a folder of confirming runs: the settings, best first, the fresh seeds, and out of how many settings.

    The plan is written before the first run and never changes, so that nobody adds seeds after a look at the results.
    """

    picked: tuple[Picked, ...]
    seeds: tuple[int, ...]
    out_of: int


def plan_confirmation(
    paths: Sequence[Path], folder: Path | None, *, top: int, seeds: int
) -> tuple[Path, Confirmation, bool]:
    """Return the folder of the confirming runs, their plan, and whether it was made earlier.

    Args:
        paths: Folders of sweeps or searches, of which the best settings are taken, and run directories, which are
            taken as they are.
        folder: The folder for the runs; None means `confirm` in the first sweep's folder.
        top: The number of settings to take from the sweeps.
        seeds: The number of seeds for each setting.

    Raises:
        ConfigError: a path has no completed run, or the folder has another plan.
    """
    given = [path for path in paths if _is_run(path)]
    sweeps = [path for path in paths if path not in given]
    if folder is None:
        folder = (sweeps[0] if sweeps else given[0].absolute().parent) / CONFIRM_FOLDER
    folder = folder.absolute()
    if (folder / CONFIRM_FILE).exists():
        plan = _read(folder)
        wanted = (min(top, plan.out_of) if sweeps else 0) + len(given)
        if len(plan.picked) != wanted or len(plan.seeds) != seeds:
            raise ConfigError(
                f"{folder}: was planned with {len(plan.picked)} settings and {len(plan.seeds)} seeds, which must not "
                "change after a look at results; give the same numbers, or another folder with --into"
            )
        return folder, plan, True
    runs = load_runs([*sweeps, *given])
    as_given = {path.resolve() for path in given}
    ranked = rank_settings([run for run in runs if run.path.resolve() not in as_given], _maximizes(sweeps))
    if sweeps and not ranked:
        raise ConfigError(f"{sweeps[0]}: has no setting whose runs all completed; nothing can be confirmed")
    added = [
        Picked(run.path.absolute(), _title(run), as_float(run.result.get("objective")))
        for run in runs
        if run.path.resolve() in as_given
    ]
    picked = {one.run: one for one in [*ranked[:top], *added]}
    return folder, Confirmation(tuple(picked.values()), _fresh_seeds(runs, sweeps, seeds), len(ranked)), False


def rank_settings(runs: Sequence[ComparedRun], maximizes: bool) -> list[Picked]:
    """Return the settings of which every run completed with an objective, best first by the mean over their runs."""
    settings: dict[int, list[ComparedRun]] = {}
    for run, number in zip(runs, group_numbers(runs), strict=True):
        settings.setdefault(number, []).append(run)
    found = []
    for own in settings.values():
        objectives = [as_float(run.result.get("objective")) for run in own]
        if all(run.status == COMPLETED.status for run in own) and all(map(math.isfinite, objectives)):
            found.append(Picked(own[0].path.absolute(), _title(own[0]), sum(objectives) / len(objectives)))
    return sorted(found, key=lambda one: -one.objective if maximizes else one.objective)


def write_plan(folder: Path, plan: Confirmation) -> None:
    """Write the plan into the folder, before the first run.

    Raises:
        ConfigError: another process has written one in the meantime.
    """
    make_sweep_directory(folder)
    content = {
        "out_of": plan.out_of,
        "seeds": list(plan.seeds),
        "settings": [
            {
                "run": str(one.run),
                "title": one.title,
                "objective": one.objective if math.isfinite(one.objective) else None,
            }
            for one in plan.picked
        ],
    }
    with locked_folder(folder):
        if (folder / CONFIRM_FILE).exists():
            raise ConfigError(f"{folder}: another process has just planned it; the same command again joins in")
        write_atomically(folder / CONFIRM_FILE, json.dumps(content, indent=2, allow_nan=False) + "\n")


def confirmation_jobs(folder: Path, plan: Confirmation, trusted: Sequence[str]) -> list[Job]:
    """Return a job for each setting and seed, after checking that its config is the recorded one but for the seed.

    Raises:
        ConfigError: a run's config cannot be composed again here, or names code that is not trusted.
    """
    register_directory_resolver()
    jobs = []
    for rank, one in enumerate(plan.picked, 1):
        seed_override = parse_overrides([f"seed={plan.seeds[0]}"])
        own = overrides_to_recompose(one.run, trusted, seed_override, keeps_origin=True)
        check_preparation(own, seed_override, one.run)
        _refuse_changed_config(one.run, tuple(own))
        kept = [line for line in own if line.partition("=")[0].lstrip("+") != "seed"]
        for seed in plan.seeds:
            directory = folder / f"top{rank},seed={seed}"
            jobs.append(Job((*kept, f"seed={seed}"), directory, f"{one.title} seed={seed}"))
    for job in jobs:
        job_config(job.overrides, (), job.directory)
    return jobs


def record_jobs(folder: Path, jobs: Sequence[Job]) -> None:
    """Record the jobs as those of a comparison that was planned before any look."""
    record_start(folder, [(job.directory, job.overrides) for job in jobs])


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() and (path / "result.json").is_file()


def _title(run: ComparedRun) -> str:
    """Return the run's label without its seed."""
    return " ".join(word for word in run.label.split() if not word.startswith("seed=")) or run.label


def _maximizes(sweeps: Sequence[Path]) -> bool:
    return any(read_json(sweep / SEARCH_FILE).get("direction") == MAXIMIZE for sweep in sweeps)


def _fresh_seeds(runs: Sequence[ComparedRun], sweeps: Sequence[Path], count: int) -> tuple[int, ...]:
    """Return seeds above all that the runs, or earlier confirmations of the sweeps, have used."""
    used = [seed for run in runs if isinstance(seed := run.seed, int) and 0 <= seed < MAX_SEED]
    for sweep in sweeps:
        for path in sweep.glob(f"*/{CONFIRM_FILE}"):
            used += _read(path.parent).seeds
    first = max(used, default=0) + 1
    return tuple(range(first, first + count))


def _read(folder: Path) -> Confirmation:
    content = read_json(folder / CONFIRM_FILE)
    match content:
        case {"out_of": int(out_of), "seeds": [int(), *_] as seeds, "settings": [dict(), *_] as settings}:
            picked = tuple(_picked(one) for one in settings)
            if all(type(seed) is int for seed in seeds) and None not in picked:
                return Confirmation(tuple(one for one in picked if one is not None), tuple(seeds), out_of)
    raise ConfigError(f"{folder / CONFIRM_FILE}: is not a plan that lmtrain wrote; move it away")


def _picked(content: Any) -> Picked | None:
    match content:
        case {"run": str(run), "title": str(title), "objective": float() | int() | None as objective}:
            return Picked(Path(run), printable(title), as_float(objective))
    return None


def _refuse_changed_config(run: Path, own: tuple[str, ...]) -> None:
    """Raise ConfigError if the run's config cannot be composed here as it was, with its own seed."""
    saved: Any = OmegaConf.to_container(read_saved(run / "config.yaml"))
    now = job_config(own, (), run).config
    if config_hash(saved) == config_hash(now):
        return
    before, after = (_without_neutral(each) for each in (saved, now))
    raise ConfigError(
        f"{run}: can't be run again here, because its config would change: {'; '.join(differences(before, after))}"
    )


def _without_neutral(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in NEUTRAL_KEYS}
