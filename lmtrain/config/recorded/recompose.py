"""Builds the overrides that compose the config of a saved run again, to fork or repeat it."""

import copy
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from lmtrain.checkpoint.steps import CHECKPOINTS, step_to_fork
from lmtrain.config.batch_size import ACCUMULATION, GLOBAL, is_auto, keep_found_size
from lmtrain.config.build import raising_config_errors
from lmtrain.config.check import GROUPS
from lmtrain.config.compose import compose, without_hydra
from lmtrain.config.hydra_internals import parse_flags
from lmtrain.config.keys import key_paths
from lmtrain.config.overrides import override_value, parse_overrides, quoted
from lmtrain.config.recorded.overrides import check_restored, recorded_overrides
from lmtrain.config.recorded.paths import check_preparation, check_run_folder
from lmtrain.config.recorded.run_names import find_run
from lmtrain.config.recorded.trust import (
    CONFIG,
    EXPERIMENTS,
    TASKS_FOLDER,
    check_hydra_trust,
    check_task_trust,
    check_trust,
    read_saved,
)
from lmtrain.config.written_for.mismatches import FORK
from lmtrain.errors import ConfigError
from lmtrain.files.links import refuse_links

FORK_KEYS = ("fork", "step")
COMMAND_KEYS = ("resume", "retry_failed")  # keys that belong to a command, not to the run


def expand_fork(arguments: Sequence[str], *, prepares: bool = True) -> list[str]:
    """Expand a command line with `fork=RUN_DIR` so that it composes that run's config; return any other unchanged.

    The result has the overrides of the forked run, then `++fork`, then the command's own overrides. `++fork` marks a
    command line that is already expanded, as jobs of a sweep get it. `step` becomes a number, so that the command keeps
    its meaning when the forked run trains further. `prepares` tells whether the command prepares missing data.

    Raises:
        ConfigError: The run has no checkpoint, or `overrides_to_recompose` or `check_preparation` refuses it.
    """
    flags = parse_flags(arguments)
    forks = [text for text in flags.overrides if text.startswith("fork=") and text != "fork=null"]
    if not forks:
        return list(arguments)
    if forks[-1] == "fork=":
        raise ConfigError("fork=: is empty; give a run directory")
    # Not parsed with Hydra's grammar, because jobs of a sweep have directories like `lr=0.001,seed=1`.
    run = find_run(forks[-1].removeprefix("fork=").strip("'\""), "fork=")
    if not run.is_dir():
        raise ConfigError(
            f"fork={run}: no such run directory; give a single run (to sweep over its checkpoints, use step=N,M)"
        )
    given = parse_overrides([text for text in flags.overrides if text not in forks])
    trusted = [str(name) for override in given if override.key_or_group == "trust" for name in _as_list(override)]
    own = overrides_to_recompose(run, trusted, given)
    given = [override for override in given if override.key_or_group != "trust"]
    if prepares:
        check_preparation(own, given, run)
    rest = [_text(override) for override in given]
    if not any(override.key_or_group == "step" for override in given):
        with raising_config_errors():
            rest.append(f"step={step_to_fork(run, None)}")
    others = [text for text in arguments if text not in flags.overrides]
    return [*others, *own, f"{FORK}{quoted(str(run))}", *rest]


def overrides_to_recompose(
    run_dir: Path, trusted: Collection[str], given: Sequence[Override] = (), *, keeps_origin: bool = False
) -> list[str]:
    """Return overrides that compose the run's config in the current folder exactly as it was saved.

    Config files may have changed since the run; values that would differ are set to the saved ones.

    Args:
        run_dir: The saved run.
        trusted: Names of classes and functions that may be imported in addition to those that `check_trust` allows.
        given: The command's own overrides, which will follow. If they select another choice of a group, the run's
            values that the new choice does not have are left out. They may also set keys that the run did not have.
        keeps_origin: True to keep `fork` and `step` of a run that is itself a fork.

    Raises:
        ConfigError: There is no run, its config names code that is not trusted (see `check_trust`), its overrides are
            not those of a run (see `config/recorded/overrides.py`), or one of its folders is a link.
    """
    if not (run_dir / ".hydra" / "config.yaml").is_file():
        raise ConfigError(f"{run_dir}: no run there (no .hydra/config.yaml); give a run directory")
    with raising_config_errors():
        refuse_links(run_dir, (".hydra", CHECKPOINTS), below=(".hydra", CHECKPOINTS))
    saved = read_saved(run_dir / ".hydra" / "config.yaml")
    check_trust(saved, trusted, run_dir)
    replaced = {override.key_or_group: override.value() for override in given}
    if replaced.get("trainer.eval_tasks", True) and f"trainer.{TASKS_FOLDER}" not in replaced:
        check_task_trust(saved, trusted, run_dir)
    if is_auto(saved) and (run_dir / CONFIG).is_file():
        keep_found_size(saved, read_saved(run_dir / CONFIG))
    without = COMMAND_KEYS if keeps_origin else (*COMMAND_KEYS, *FORK_KEYS)
    own = [each for each in recorded_overrides(run_dir) if each.key not in without]
    own_lines = [each.line for each in own]
    now = _compose_trusted(own_lines, trusted, run_dir)
    check_run_folder(now, given, run_dir)
    differing = _differing("", OmegaConf.to_container(saved), OmegaConf.to_container(without_hydra(copy.deepcopy(now))))
    newer = {override.key_or_group for override in given} - set(key_paths(OmegaConf.to_container(saved)))
    restored = [(key, line) for key, line in differing if key.partition(".")[0] not in without and key not in newer]
    if restored:
        check_restored(restored, run_dir)
        now = _compose_trusted([*own_lines, *(line for _, line in restored)], trusted, run_dir)
        check_run_folder(now, given, run_dir)
    if choices := [f"{override.key_or_group}={_first_choice(override)}" for override in given if _replaces(override)]:
        other = compose([*(each.line for each in own if each.chooses), *choices])
        keys = set(key_paths(OmegaConf.to_container(other)))
        own_lines = [each.line for each in own if each.chooses or each.key in keys]
        own_lines += _without_leftovers(other, choices)
        groups = {choice.partition("=")[0].partition("/")[0] for choice in choices}
        if "data" in groups:
            groups.add("prepare")  # comes with the data choice
        restored = [(key, line) for key, line in restored if key.partition(".")[0] not in groups]
    if any(override.key_or_group == GLOBAL and override.value() is not None for override in given):
        own_lines = [line for line in own_lines if not line.startswith(f"{ACCUMULATION}=")]  # it follows from that
    return [*own_lines, *(line for _, line in restored)]


def _compose_trusted(lines: Sequence[str], trusted: Collection[str], run_dir: Path) -> DictConfig:
    """Return the config composed from a run's overrides, with Hydra's settings, after checking all names in it."""
    composed = compose(lines, with_hydra=True)
    check_hydra_trust(composed.hydra, trusted, run_dir)
    check_trust(without_hydra(copy.deepcopy(composed)), trusted, run_dir)
    return composed


def _without_leftovers(composed: DictConfig, choices: Sequence[str]) -> list[str]:
    """Return overrides that delete values set by an experiment that the new choice of their group does not have."""
    pure = OmegaConf.to_container(compose(choices))
    left = OmegaConf.to_container(composed)
    assert isinstance(pure, dict)
    assert isinstance(left, dict)
    return [
        f"~{group}.{key}"
        for group in dict.fromkeys(choice.partition("=")[0] for choice in choices)
        if isinstance(left.get(group), dict) and isinstance(pure.get(group), dict)
        for key in left[group]
        if key not in pure[group]
    ]


def _differing(path: str, saved: Any, now: Any) -> Iterator[tuple[str, str]]:
    """Yield keys and the overrides that turn `now` into `saved`; interpolations stay unresolved."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in [*saved, *(key for key in now if key not in saved)]:
            here = f"{path}.{key}" if path else str(key)
            if key not in saved:
                if now[key] is None:
                    yield here, f"++{here}=0"  # Hydra does not delete a key that is null
                yield here, f"~{here}"
            elif key not in now:
                yield here, f"++{here}={override_value(saved[key])}"
            else:
                yield from _differing(here, saved[key], now[key])
    elif isinstance(saved, dict):
        yield path, f"++{path}={{}}"
        yield from _differing(path, saved, {})
    elif saved != now or type(saved) is not type(now):
        yield path, f"++{path}={override_value(saved)}"


def _as_list(override: Override) -> list[Any]:
    value = override.value()
    return value if isinstance(value, list) else [value]


def _text(override: Override) -> str:
    return str(override.input_line)


def _replaces(override: Override) -> bool:
    """Return whether an override of the command selects a choice of a config group."""
    return override.key_or_group in (*GROUPS, "logger", EXPERIMENTS) or "/" in override.key_or_group


def _first_choice(override: Override) -> str:
    """Return the choice, or the first choice of a sweep; Hydra reports keys that the others do not have."""
    return next(iter(override.sweep_string_iterator())) if override.is_sweep_override() else str(override.value())
