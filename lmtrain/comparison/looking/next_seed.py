"""Makes the command that adds one more seed of some settings to their sweep."""

import itertools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lmtrain.comparison.compared_run import ComparedRun
from lmtrain.comparison.looking.design import PlannedRun, key_of, read_design
from lmtrain.config.overrides import quoted
from lmtrain.terminal.paths import short_path

SET_ANEW = ("hydra.sweep.dir", "retry_failed")
MULTIRUN = {"-m", "--multirun"}


def command_for_seeds(sweep: Path, settings: Sequence[tuple[str, ...]], seeds: int | range, folder: Path) -> str | None:
    """Return the command that runs settings of a sweep with some seeds; None if the sweep's files do not tell it.

    Args:
        sweep: The folder of the sweep.
        settings: For each setting, the overrides of one of its jobs without the seed.
        seeds: The seed, or several.
        folder: The folder of the sweep that the runs become part of: the same, or another one.
    """
    starts = read_design(sweep)
    if not starts or not settings or not MULTIRUN & set(starts[-1].command):
        return None
    planned = [run for start in starts for run in start.runs]
    return _command(starts[-1].command, planned, settings, seeds, folder)


def settings_of(sweep: Path, runs: Iterable[ComparedRun]) -> list[tuple[str, ...]]:
    """Return the settings of a sweep's runs, which are their overrides without the seed, in the order of the sweep."""
    places = (run.path.absolute() for run in runs)
    names = {path.relative_to(sweep).as_posix() for path in places if path.is_relative_to(sweep)}
    planned = [run for start in read_design(sweep) for run in start.runs]
    return list(dict.fromkeys(run.setting for run in planned if run.directory in names))


def command_for_missing(sweep: Path, missing: Iterable[str]) -> str | None:
    """Return the command of the last start that planned any of these missing runs, given by their directories."""
    wanted = set(missing)
    for start in reversed(read_design(sweep)):
        if wanted & {run.directory for run in start.runs} and MULTIRUN & set(start.command):
            kept = [word for word in start.command if key_of(word) not in SET_ANEW]
            return f"python -m lmtrain {shlex.join([*kept, _sweep_dir(sweep)])}"
    return None


def next_seed(seeds: Sequence[frozenset[int]]) -> int:
    """Return the seed to run next, given the seeds of each setting.

    It is the smallest that some settings have and others lack or, if there is none, a new one.
    """
    every = frozenset().union(*seeds)
    some = [seed for seed in every if not all(seed in own for own in seeds)]
    return min(some) if some else max(every, default=0) + 1


def _command(
    words: Sequence[str],
    planned: Sequence[PlannedRun],
    settings: Sequence[tuple[str, ...]],
    seeds: int | range,
    folder: Path,
) -> str:
    """Return a sweep's command with other seeds and with only some of its settings, if a grid can express these."""
    everything = list(dict.fromkeys(run.setting for run in planned))
    changing = _changing(everything)
    kept = [word for word in words if key_of(word) not in {*map(key_of, changing), "seed", *SET_ANEW}]
    chosen = _as_grid(settings, changing) or _as_grid(everything, changing)
    if chosen is None:  # no grid, as after several starts with other values: as it was given last
        kept = [word for word in words if key_of(word) not in {"seed", *SET_ANEW}]
        chosen = {}
    texts = [f"{key}={','.join(values)}" for key, values in chosen.items()]
    seed = f"seed={seeds}" if isinstance(seeds, int) else f"seed=range({seeds.start},{seeds.stop})"
    return f"python -m lmtrain {shlex.join([*kept, *texts, seed, _sweep_dir(folder)])}"


def _sweep_dir(folder: Path) -> str:
    path = short_path(folder)
    plain = all(character.isalnum() or character in "/_.-" for character in path)
    return f"hydra.sweep.dir={path if plain else quoted(path)}"


def _changing(settings: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the keys, with a `+` if they have one, of the overrides that are not the same in all settings."""
    shared = set.intersection(*map(set, settings)) if settings else set()
    return list(dict.fromkeys(_split(text)[0] for setting in settings for text in setting if text not in shared))


def _as_grid(settings: Sequence[tuple[str, ...]], changing: Sequence[str]) -> Mapping[str, list[str]] | None:
    """Return the values by key whose combinations are exactly these settings; None if there are no such values."""
    by_key = [dict(map(_split, setting)) for setting in settings]
    if not settings or any(key not in values for values in by_key for key in changing):
        return None
    grid = {key: list(dict.fromkeys(values[key] for values in by_key)) for key in changing}
    combined = set(itertools.product(*grid.values()))
    return grid if combined == {tuple(values[key] for key in changing) for values in by_key} else None


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key, value
