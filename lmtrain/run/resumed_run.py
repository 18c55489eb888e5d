"""Prepares a run to continue in its own directory, for `resume=RUN_DIR`, `restarted_run.py` and the Python API."""

import contextlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmtrain.checkpoint.kept_choices import kept_choices
from lmtrain.checkpoint.steps import CHECKPOINTS, checkpoint_steps, step_folder
from lmtrain.config.batch_size import GLOBAL, keep_found_size, refuse_given_accumulation
from lmtrain.config.build import raising_config_errors
from lmtrain.config.check import check, is_reference
from lmtrain.config.compose import compose_with_notes, set_up_hydra
from lmtrain.config.keys import did_you_mean, key_paths
from lmtrain.config.overrides import apply_overrides, has_key, listed_names, parse_overrides
from lmtrain.config.preflight import preflight
from lmtrain.config.recorded.run_names import find_run
from lmtrain.config.recorded.trust import check_task_trust, check_trust, read_saved
from lmtrain.config.signature import signature_of
from lmtrain.errors import ConfigError
from lmtrain.files.limited import read_json
from lmtrain.run.directory import refuse_strange_entries, starting_folder
from lmtrain.run.identity import plain_config
from lmtrain.run.source_code import changed_sources, source_hashes
from lmtrain.terminal.as_text import differences
from lmtrain.terminal.paths import change_folder

# Keys that may change without `allow_changes`: they affect neither the steps already done nor how a step computes.
FREE_TO_CHANGE = (
    "data.path",  # and data.paths; the fingerprint shows whether it is the same data
    "prepare",
    "trainer.max_steps",
    "trainer.eval_",
    "trainer.sample_",
    "trainer.log_interval",
    "trainer.checkpoint_interval",
    "trainer.keep_",
    "scheduler.max_steps",
    "logger",
    "sample_tokens",
    "parallel",  # as the number of processes: state and data order stay exact
)
# How a step's samples are split into micro-batches: state and data order stay exact, only rounding differs.
MICRO_BATCH_KEYS = ("data.batch_size", "trainer.gradient_accumulation_steps")
# Number formats of what processes send; others than float32 change how a step computes.
SENT_IN = ("parallel.param_dtype", "parallel.reduce_dtype")
# Of the shipped models: another kernel changes only rounding, and less memory changes no bit.
KERNEL_KEYS = ("model.attention", "model.recompute")


@dataclass(frozen=True)
class ResumedRun:
    """A run that is ready to continue. Nothing has been written yet; the current folder is the run's starting folder.

    Attributes:
        cfg: The resolved and checked config.
        directory: The run directory.
        hydra_files: The texts for the files in `.hydra/`, by file name.
        changes: The differences that the command makes to the config, one line each.
    """

    cfg: DictConfig
    directory: Path
    hydra_files: Mapping[str, str]
    changes: Sequence[str]


def resume_requested(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the run directory that a command line resumes (None for a new run), and its other arguments.

    Raises:
        ConfigError: `resume=` is empty or means several runs, or `allow_changes=` or `trust=` is given without a run.
    """
    resumed = [text for text in arguments if text.startswith("resume=") and text != "resume=null"]
    forked = any(text.startswith("fork=") for text in arguments)
    for key, fits in (("allow_changes", bool(resumed)), ("trust", bool(resumed) or forked)):
        if not fits and any(text.partition("=")[0] == key for text in arguments):
            alternative = " or fork=RUN_DIR" if key == "trust" else ""
            raise ConfigError(f"{key}: works only with resume=RUN_DIR{alternative}; add that or leave {key} out")
    if "resume=" in resumed:
        raise ConfigError("resume=: is empty; give a run directory")
    if not resumed:
        return None, list(arguments)
    run_dir = find_run(resumed[-1].removeprefix("resume=").strip("'\""), "resume=")
    return run_dir, [text for text in arguments if not text.startswith("resume=")]


def resumed_run(run_dir: Path, arguments: Sequence[str]) -> ResumedRun:
    """Return a run with its original config and the given changes, and change to the folder it was started in.

    Raises:
        ConfigError: There is no run, the config or the code that it names has changed without being listed in
            `allow_changes`, or only the run's own config names some code and `trust` does not list it.
    """
    composed_path, resolved_path = run_dir / ".hydra" / "config.yaml", run_dir / "config.yaml"
    if not composed_path.is_file() or not resolved_path.is_file():
        raise ConfigError(
            f"resume={run_dir}: no run there (no config.yaml and .hydra/config.yaml); give the directory of a run that "
            "has started"
        )
    if flags := [text for text in arguments if text.startswith("-")]:
        raise ConfigError(f"{flags[0]}: resume accepts no flags, only key=value overrides")
    if origin := [text for text in arguments if text.lstrip("+").startswith(("fork=", "step="))]:
        raise ConfigError(f"{origin[0]}: resume continues a run, fork starts a new one from it; give only one of them")
    with raising_config_errors():
        refuse_strange_entries(run_dir)  # before any file is read
    set_up_hydra()
    permissions = {key: listed_names(arguments, key) for key in ("allow_changes", "trust")}
    given_overrides = [text for text in arguments if text.partition("=")[0] not in permissions]
    composed, before = read_saved(composed_path), read_saved(resolved_path)
    # Before anything is resolved, looked up or built.
    for saved in (composed, before):
        check_trust(saved, permissions["trust"], run_dir)
        check_task_trust(saved, permissions["trust"], run_dir)
    keep_found_size(composed, before)
    overrides = _choose_parallel(composed, given_overrides)
    changed = apply_overrides(composed, overrides)
    refuse_given_accumulation(changed, overrides, {})
    if starting_folder(run_dir) not in (None, Path.cwd()):
        _make_data_folders_absolute(changed, overrides)
    given, run_dir = run_dir, run_dir.resolve()
    _change_to_starting_folder(run_dir, with_modules=bool(permissions["trust"]))
    checked = check(changed)
    _fill_in_defaults(before, [override.key_or_group for override in parse_overrides(overrides)])
    for key in ("vocab_size", "end_of_text"):  # null means the data's value, which the run has recorded
        if checked.model.get(key, 0) is None:
            checked.model[key] = before.model[key]
    changes = [
        *differences(OmegaConf.to_container(before), OmegaConf.to_container(checked)),
        *_changed_code(run_dir, plain_config(checked)),
    ]
    if len(overrides) < len(given_overrides):  # another choice of `parallel` has other keys
        named = {override.key_or_group for override in parse_overrides(overrides)} | {"parallel._target_"}
        changes = [line for line in changes if line.partition(":")[0] in named or not line.startswith("parallel.")]
    kept = kept_choices(run_dir)  # to replace `auto` by what it became changes nothing
    changes = [
        line
        for line in changes
        if (key := line.partition(":")[0]) not in kept
        or OmegaConf.select(before, key) != "auto"
        or OmegaConf.select(checked, key) != kept[key]
    ]
    # Without values that are interpolations: they change only because another value does.
    own = [line for line in changes if not is_reference(changed, line.partition(":")[0])]
    for name in permissions["allow_changes"]:
        if not has_key(changed, name):
            raise ConfigError(
                f"allow_changes={name}: unknown key{did_you_mean(name, key_paths(OmegaConf.to_container(changed)))}"
            )
    refused = _refused_changes(own, permissions["allow_changes"], before, checked)
    if refused:
        keys = ",".join(dict.fromkeys(line.partition(":")[0] for line in refused))
        allowing = [*(text for text in arguments if not text.startswith("allow_changes=")), f"allow_changes=[{keys}]"]
        raise ConfigError(
            f"resume={given}: would change the run ({'; '.join(refused)}); start a new run, or allow the change: "
            f"python -m lmtrain {shlex.join([f'resume={given}', *allowing])}"
        )
    cfg = preflight(changed, begun=True)  # no preparation of data: this run already has its token files
    hydra_files = {"config.yaml": OmegaConf.to_yaml(changed)}  # the next resume starts from this config
    return ResumedRun(cfg, run_dir, hydra_files, changes)


def _choose_parallel(composed: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Put a new choice of the group `parallel` into a composed config, in place; return the other overrides.

    It is the only group that a resume may change. Keys that both choices have keep their values.
    """
    chosen = [text for text in overrides if text.startswith("parallel=")]
    if chosen:
        before, now = composed.get("parallel") or {}, compose_with_notes(chosen[-1:]).config.parallel
        now.update({key: before[key] for key in now if key in before and not str(key).startswith("_")})
        composed.parallel = now
    return [text for text in overrides if text not in chosen]


def _fill_in_defaults(before: DictConfig, keys: Sequence[str]) -> None:
    """Add keys that the run is older than, with the defaults of their parts, which it has computed with, in place."""
    for key in keys:
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(before, parent) if parent else None
        if has_key(before, key) or not isinstance(node, DictConfig):
            continue
        parameter = signature_of(node["_target_"], typed=()).parameters.get(name)
        if parameter is not None and not parameter.required:
            with contextlib.suppress(OmegaConfBaseException):  # a default that no config can have
                OmegaConf.update(before, key, parameter.default, force_add=True)


def _make_data_folders_absolute(changed: DictConfig, overrides: Sequence[str]) -> None:
    """Make the data folders given on the command line absolute, in place, if they exist in the current folder."""
    for override in parse_overrides(overrides):
        key, value = override.key_or_group, override.value()
        if key.startswith("data.path") and isinstance(value, str) and Path(value).is_dir():
            OmegaConf.update(changed, key, str(Path(value).absolute()))


def _changed_code(run_dir: Path, config: Mapping[str, Any]) -> list[str]:
    """Return `key: files …` for each `_target_` whose source has changed since the newest checkpoint."""
    newest = max(checkpoint_steps(run_dir), default=None)
    if newest is None:
        return []
    saved = read_json(run_dir / CHECKPOINTS / step_folder(newest) / "state.json").get("code")
    then = {key: hashes for key, hashes in saved.items() if isinstance(hashes, dict)} if isinstance(saved, dict) else {}
    changed = changed_sources(then, source_hashes(config))
    return [f"{key}: {', '.join(files)} changed since step {newest}" for key, files in changed.items()]


def _change_to_starting_folder(run_dir: Path, *, with_modules: bool) -> None:
    """Change to the folder that the run was started in, for its relative paths.

    With `with_modules`, its modules can also be imported.
    """
    if (folder := starting_folder(run_dir)) is None:
        return
    change_folder(folder)
    if with_modules and str(folder) not in sys.path:
        # Last, so that a module there can't replace one of the user's own or of an installed package.
        sys.path.append(str(folder))


def _refused_changes(changes: Sequence[str], allowed: Sequence[str], before: Any, after: Any) -> list[str]:
    """Return the changes that are neither free nor allowed; `allowed` lists keys or their parent keys."""
    free = list(FREE_TO_CHANGE)
    if after.trainer.get("on_bad_step") == "rewind":
        free.remove("trainer.checkpoint_interval")  # it decides which step a rewind returns to
    if str(after.model.get("_target_")).startswith("lmtrain.model."):
        free.extend(KERNEL_KEYS)
    if _step_samples(before) == _step_samples(after):
        free.extend((*MICRO_BATCH_KEYS, GLOBAL))
    refused = []
    for line in changes:
        key = line.partition(":")[0]
        is_allowed = any(key == name or key.startswith(f"{name}.") for name in allowed)
        changes_sums = key in SENT_IN and OmegaConf.select(after, key) not in (None, "float32")
        if not is_allowed and (changes_sums or not key.startswith(tuple(free))):
            refused.append(line)
    return refused


def _step_samples(cfg: Any) -> int | None:
    if isinstance(whole := cfg.trainer.get("global_batch_size"), int):
        return whole
    sizes = [OmegaConf.select(cfg, key) for key in MICRO_BATCH_KEYS]
    return None if None in sizes else int(sizes[0] * sizes[1])
