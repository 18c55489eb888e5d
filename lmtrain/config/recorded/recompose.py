"""The command line that composes what another run was: to fork it, and to repeat it."""

import copy
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from lmtrain.checkpoint.steps import CHECKPOINTS, step_to_fork
from lmtrain.config.build import raising_config_errors
from lmtrain.config.check import GROUPS
from lmtrain.config.compose import compose, without_hydra
from lmtrain.config.hydra_internals import parse_flags
from lmtrain.config.keys import key_paths
from lmtrain.config.overrides import override_value, parse_overrides, quoted
from lmtrain.config.recorded.overrides import check_restored, recorded_overrides
from lmtrain.config.recorded.paths import check_preparation, check_run_folder
from lmtrain.config.recorded.trust import EXPERIMENTS, check_hydra_trust, check_trust, read_saved
from lmtrain.config.written_for import FORK
from lmtrain.errors import ConfigError
from lmtrain.files.links import refuse_links

ORIGIN = ("fork", "step")
ASKED = ("resume", "retry_failed")  # of the command, not of the run


def expand_fork(arguments: Sequence[str], *, prepares: bool = True) -> list[str]:
    """Put before a command line with `fork=RUN_DIR` what composes that run; return any other command line as it is.

    `step` becomes a number, so that the same command means the same when the run has gone on. `fork` itself is written
    `++fork` then: in this form, as the jobs of a sweep get it, nothing is put before it. It stands between what is the
    run's and what is the command's own. `prepares`: the command makes data that is missing.

    Raises:
        ConfigError: as `overrides_to_recompose` and `check_preparation`; or the run has no checkpoint.
    """
    flags = parse_flags(arguments)
    forks = [text for text in flags.overrides if text.startswith("fork=") and text != "fork=null"]
    if not forks:
        return list(arguments)
    if forks[-1] == "fork=":
        raise ConfigError("fork=: empty; give a run directory")
    # A path and no value of Hydra's grammar: the jobs of a sweep have directories like `lr=0.001,seed=1`.
    run = Path(forks[-1].removeprefix("fork=").strip("'\""))
    if not run.is_dir():
        raise ConfigError(f"fork={run}: no such run directory; it is one run, and step=N,M sweeps over its checkpoints")
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
    """Return overrides that compose the run's config anew, as it was saved, in the current folder.

    Config files may have changed since the run: every value that they would change is set to what it was. Where `given`
    overrides, which are to follow these, take another choice of a group, the run's own values of that group that the
    new choice does not have are left out. `keeps_origin`: of a fork, that it is one.

    Raises:
        ConfigError: no run there; one whose config names what is not to be trusted (see `check_trust`), or whose own
            overrides do more than a run's can (see `config/recorded/overrides.py`); a folder that leads elsewhere.
    """
    if not (run_dir / ".hydra" / "config.yaml").is_file():
        raise ConfigError(f"{run_dir}: no run there (no .hydra/config.yaml)")
    with raising_config_errors():
        refuse_links(run_dir, (".hydra", CHECKPOINTS), below=(".hydra", CHECKPOINTS))
    saved = read_saved(run_dir / ".hydra" / "config.yaml")
    check_trust(saved, trusted, run_dir)
    without = ASKED if keeps_origin else (*ASKED, *ORIGIN)
    own = [one for one in recorded_overrides(run_dir) if one.key not in without]
    own_lines = [one.line for one in own]
    now = _compose_trusted(own_lines, trusted, run_dir)
    check_run_folder(now, given, run_dir)
    differing = _differing("", OmegaConf.to_container(saved), OmegaConf.to_container(without_hydra(copy.deepcopy(now))))
    restored = [(key, line) for key, line in differing if key.partition(".")[0] not in without]
    if restored:
        check_restored(restored, run_dir)
        now = _compose_trusted([*own_lines, *(line for _, line in restored)], trusted, run_dir)
        check_run_folder(now, given, run_dir)
    if choices := [f"{override.key_or_group}={_first_choice(override)}" for override in given if _replaces(override)]:
        other = compose([*(one.line for one in own if one.chooses), *choices])
        keys = set(key_paths(OmegaConf.to_container(other)))
        own_lines = [one.line for one in own if one.chooses or one.key in keys]
        own_lines += _without_leftovers(other, choices)
        groups = {choice.partition("=")[0].partition("/")[0] for choice in choices}
        if "data" in groups:
            groups.add("prepare")  # which a data choice brings
        restored = [(key, line) for key, line in restored if key.partition(".")[0] not in groups]
    return [*own_lines, *(line for _, line in restored)]


def _compose_trusted(lines: Sequence[str], trusted: Collection[str], run_dir: Path) -> DictConfig:
    """Return what a run's own overrides compose, with Hydra's settings, all of it checked; nothing is built."""
    composed = compose(lines, with_hydra=True)
    check_hydra_trust(composed.hydra, trusted, run_dir)
    check_trust(without_hydra(copy.deepcopy(composed)), trusted, run_dir)
    return composed


def _without_leftovers(composed: DictConfig, choices: Sequence[str]) -> list[str]:
    """Return overrides that delete what an experiment set for a group and the group's new choice does not have."""
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
    """Yield keys with the overrides that make `now` what was saved, interpolations as such."""
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in [*saved, *(key for key in now if key not in saved)]:
            here = f"{path}.{key}" if path else str(key)
            if key not in saved:
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
    """Return whether an override of the command takes another choice of a group that the menu has."""
    return override.key_or_group in (*GROUPS, "logger", EXPERIMENTS) or "/" in override.key_or_group


def _first_choice(override: Override) -> str:
    """Return the choice, or the first of a sweep: another may have other keys, which Hydra reports then."""
    return next(iter(override.sweep_string_iterator())) if override.is_sweep_override() else str(override.value())
