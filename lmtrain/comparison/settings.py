"""Says what makes a setting: everything that a run computed with, except the seed. Runs of one setting are replicates.

The config alone does not say it. Some of its keys change no result, and some of what a run computed with (the contents
of the data, the code, a change of the config in a resume) is only in the run's records.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from lmtrain.comparison.compared_run import ComparedRun
from lmtrain.comparison.labels import hashable
from lmtrain.comparison.recorded_facts import (
    AVERAGED,
    FACTS,
    MICRO_BATCH_KEYS,
    RESUMED,
    averaged_from,
    facts_of,
    resolved_system,
    resumed_changes,
)

GLOBAL_BATCH = "global_batch"  # sequences per optimizer step, where two runs cut them differently into micro-batches
DATA_PATH_KEYS = re.compile(r"data\.paths?(\..*)?")
SYSTEM_KEYS = ("device", "dtype", "compile")


def _always(run: ComparedRun) -> bool:
    return True


def _on_cpu(run: ComparedRun) -> bool:
    return bool(resolved_system(run)["device"] == "cpu")


def _of_a_shipped_model(run: ComparedRun) -> bool:
    return str(run.config.get("model._target_")).startswith("lmtrain.model.")


def _without_spike_check(run: ComparedRun) -> bool:
    return run.config.get("trainer.spike_zscore") is None


def _without_bad_step(run: ComparedRun) -> bool:
    return not run.bad_steps


def _without_rewind(run: ComparedRun) -> bool:
    return not (run.bad_steps and run.config.get("trainer.on_bad_step") == "rewind")


def _with_shipped_trainer(run: ComparedRun) -> bool:
    return str(run.config.get("trainer._target_")).startswith("lmtrain.")


def _sent_in_float32(run: ComparedRun) -> bool:
    used, sent = run.config.get("parallel.param_dtype"), run.config.get("parallel.reduce_dtype")
    return used is None and sent in (None, "float32")


@dataclass(frozen=True)
class NeutralKeys:
    """Config keys that change nothing in what a run computes.

    Attributes:
        keys: The keys; `*` stands for any characters.
        why: The reason why they are neutral.
        when: For which runs they are neutral.
        together: Neutral only if `when` is true for all runs that are otherwise alike. Else the seeds in which a bad
            step happened would be a setting of their own.
        takes_time: They change how long a run takes, so they count if times are compared.
    """

    keys: tuple[str, ...]
    why: str
    when: Callable[[ComparedRun], bool] = _always
    together: bool = False
    takes_time: bool = False


NEUTRAL = (
    NeutralKeys(
        ("name", "logger", "logger.*", "resume", "retry_failed", "sample_tokens"),
        "they say how a run is named, shown and started",
    ),
    NeutralKeys(("fork", "step"), "the setting of the parent counts instead, see `forks.py`"),
    NeutralKeys(("prepare", "prepare.*"), "the contents of the token files count instead"),
    NeutralKeys(("*._partial_", "*._convert_", "*._recursive_"), "they follow from the class of the part"),
    NeutralKeys(
        ("trainer.log_interval", "trainer.keep_checkpoints", "trainer.keep_every", "trainer.sample_*"),
        "they say what is logged and kept",
    ),
    NeutralKeys(
        ("trainer.eval_interval", "trainer.eval_train_batches"),
        "an evaluation changes neither weights nor random generators",
        takes_time=True,
    ),
    NeutralKeys(
        ("trainer.eval_tokens", "trainer.eval_batches"),
        "what an evaluation measured is a recorded fact, see `measurement.py`",
        takes_time=True,
    ),
    NeutralKeys(
        ("trainer.checkpoint_interval",),
        "only a rewind goes back to a checkpoint",
        _without_rewind,
        together=True,
        takes_time=True,
    ),
    NeutralKeys(
        ("trainer.on_bad_step", "trainer.spike_zscore", "trainer.spike_window"),
        "they act only in a bad step",
        _without_bad_step,
        together=True,
    ),
    NeutralKeys(("trainer.global_batch_size",), "it is the product of two other keys", _with_shipped_trainer),
    NeutralKeys(("trainer.spike_window",), "it is not used without spike_zscore", _without_spike_check),
    NeutralKeys(
        ("system.threads", "system.keep_freed_memory", "system.deterministic"),
        "they change the speed and the order of rounding",
        takes_time=True,
    ),
    NeutralKeys(
        ("model.attention", "model.recompute"),
        "the kernel of attention changes the order of rounding, and recomputing changes no bit",
        _of_a_shipped_model,
        takes_time=True,
    ),
    NeutralKeys(
        ("parallel.*",),
        "how processes share the work changes the order of rounding",
        _sent_in_float32,
        takes_time=True,
    ),
    NeutralKeys(("system.tf32",), "a CPU has no TensorFloat-32", _on_cpu, together=True),
)


@cache
def _rules_for(key: str) -> tuple[NeutralKeys, ...]:
    return tuple(rule for rule in NEUTRAL if any(fnmatchcase(key, name) for name in rule.keys))


def is_neutral(key: str, run: ComparedRun) -> bool:
    """Return whether a config key changes nothing in what this run computed."""
    return any(rule.when(run) for rule in _rules_for(key))


def changes_time(key: str) -> bool:
    """Return whether a key that is neutral otherwise changes how long a run takes."""
    return key in MICRO_BATCH_KEYS or any(rule.takes_time for rule in _rules_for(key))


def effective_settings(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """Return each run's effective setting: what it computed with, by config key or, for recorded facts, by `FACTS`.

    Two runs with equal settings, apart from `seed`, are replicates. The settings of different calls cannot be compared,
    because a value that is written in several ways, such as the path of data, is written as in the first run.
    """
    settings = [_config_that_counts(run) for run in runs]
    _write_system_alike(runs, settings)
    _write_batches_alike(runs, settings)
    facts = [facts_of(run) for run in runs]
    _write_data_alike(facts, settings)
    for run, setting in zip(runs, settings, strict=True):
        if changes := resumed_changes(run, is_neutral):
            setting[RESUMED] = changes
        if steps := averaged_from(run):
            setting[AVERAGED] = steps
    _keep_what_splits(runs, facts, settings)
    return settings


def timed_setting(run: ComparedRun) -> Mapping[str, Any]:
    """Return the setting for a comparison of times, to which more keys of the config matter."""
    timed = {key: value for key, value in run.config.items() if changes_time(key)}
    system = {f"system.{name}": value for name, value in resolved_system(run).items() if value is not None}
    return {**run.setting, **timed, **system}


def _config_that_counts(run: ComparedRun) -> dict[str, Any]:
    """Return the config without neutral keys, except those that are neutral only for several runs together."""
    return {
        key: value
        for key, value in run.config.items()
        if not any(rule.when(run) for rule in _rules_for(key) if not rule.together)
    }


def _write_system_alike(runs: Sequence[ComparedRun], settings: Sequence[dict[str, Any]]) -> None:
    """Replace `auto` by what it became, if other runs have it written out.

    `cuda:1` is the same as `cuda`, and the mode `default` of compilation the same as true.
    """
    for name in SYSTEM_KEYS:
        key = f"system.{name}"
        for setting in settings:
            if name == "compile" and setting.get(key) == "default":
                setting[key] = True
        written = {hashable(setting.get(key)) for setting in settings}
        for run, setting in zip(runs, settings, strict=True):
            if "auto" in written and len(written) > 1 and (resolved := resolved_system(run)[name]) is not None:
                setting[key] = resolved
            elif name == "device" and isinstance(setting.get(key), str):
                setting[key] = setting[key].partition(":")[0]


def _write_batches_alike(runs: Sequence[ComparedRun], settings: Sequence[dict[str, Any]]) -> None:
    """Replace the cut into micro-batches by the global batch, if two runs cut the same batch differently."""
    cuts = [_micro_batches(run) for run in runs]
    by_size: dict[int, set[tuple[int, int]]] = {}
    for each in filter(None, cuts):
        by_size.setdefault(each[0] * each[1], set()).add(each)
    if all(len(alike) < 2 for alike in by_size.values()):
        return
    for cut, setting in zip(cuts, settings, strict=True):
        if cut is not None:
            for key in MICRO_BATCH_KEYS:
                del setting[key]
            setting[GLOBAL_BATCH] = cut[0] * cut[1]


def _micro_batches(run: ComparedRun) -> tuple[int, int] | None:
    """Return sequences per micro-batch and micro-batches per step; None if the cut may change what a run computes.

    With lmtrain's own parts it does not: a global batch has the same samples, each token the same weight. A user's
    model may depend on its micro-batch (batch normalization), and so may a user's data and trainer.
    """
    parts = (run.config.get(f"{part}._target_") for part in ("model", "data", "trainer"))
    if not all(isinstance(target, str) and target.startswith("lmtrain.") for target in parts):
        return None
    cut = tuple(run.config.get(key) for key in MICRO_BATCH_KEYS)
    return (cut[0], cut[1]) if all(type(number) is int for number in cut) else None  # type: ignore[return-value]


def _write_data_alike(facts: Sequence[Mapping[str, Any]], settings: Sequence[dict[str, Any]]) -> None:
    """Write the path of equal data as in the first run that has it."""
    paths = [{key: value for key, value in setting.items() if DATA_PATH_KEYS.fullmatch(key)} for setting in settings]
    places = [tuple((key, hashable(value)) for key, value in own.items()) for own in paths]
    contents = [fact["data"] for fact in facts]
    first: dict[str, int] = {}
    found_at: dict[Any, set[str]] = {}
    for number, (place, content) in enumerate(zip(places, contents, strict=True)):
        if content is not None:
            first.setdefault(content, number)
            found_at.setdefault(place, set()).add(content)
    for place, content, own, setting in zip(places, contents, paths, settings, strict=True):
        if content is None and len(found_at.get(place, ())) == 1:
            (content,) = found_at[place]  # an unknown content is taken for the only known one at this path
        if content is not None:
            for key in own:
                del setting[key]
            setting.update(paths[first[content]])


def _keep_what_splits(
    runs: Sequence[ComparedRun], facts: Sequence[Mapping[str, Any]], settings: Sequence[dict[str, Any]]
) -> None:
    """Settle the keys that count only among runs that are alike otherwise: recorded facts, and rules for rare events.

    A fact that is unknown is taken for the only known one among these runs.
    """
    rules = {key: rule for key in _keys(settings) for rule in _rules_for(key) if rule.together}
    alike: dict[tuple[Any, ...], list[int]] = {}
    keys = [key for key in differing(settings) if key not in rules and key != "seed"]
    for number, setting in enumerate(settings):
        alike.setdefault(tuple(hashable(setting.get(key)) for key in keys), []).append(number)
    for numbers in alike.values():
        own = [settings[number] for number in numbers]
        for key, rule in rules.items():
            values = {hashable(setting.get(key)) for setting in own}
            if len(values) < 2 or all(rule.when(runs[number]) for number in numbers):
                for setting in own:
                    setting.pop(key, None)
        for name in FACTS:
            if len({facts[number][name] for number in numbers} - {None}) > 1:
                for number in numbers:
                    settings[number][name] = facts[number][name] or "unknown"


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys in which settings differ; a missing key counts as null."""
    if not settings:
        return []
    first, *others = settings
    return [key for key in _keys(settings) if any(setting.get(key) != first.get(key) for setting in others)]


def _keys(settings: Sequence[Mapping[str, Any]]) -> dict[str, None]:
    return dict.fromkeys(key for setting in settings for key in setting)
