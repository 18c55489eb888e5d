"""Defines the columns by which runs are shown, sorted and filtered: config keys and results."""

import difflib
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmtrain.comparison.labels import folder_names, setting_text, short_names
from lmtrain.comparison.lineage.families import below_their_trunk, branch_step
from lmtrain.comparison.notes import Note, names
from lmtrain.comparison.recorded_facts import RECORDED_KEYS
from lmtrain.comparison.run_values import (
    EqualPlace,
    best_value,
    final_value,
    median_speed,
    shared_steps,
    sign,
    value_at,
)
from lmtrain.comparison.runs import ComparedRun, differing_keys
from lmtrain.files.numbers import as_float
from lmtrain.terminal.as_text import printable
from lmtrain.terminal.units import counted, duration, loss_text, si

COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
CONDITION = re.compile(r"\s*(?P<key>[^<>=!\s]+)\s*(?P<comparison>==|!=|<=|>=|=|<|>)\s*(?P<value>.*?)\s*")
BRANCH = "└ "  # before the name of a branch below its trunk
MAX_FOLDER_CHARS = 20  # as in `20261123-120000-1a2b`; the names of a sweep's folders are their overrides
ALIASES = {"from": "parent"}  # the statistics show a parent as `from …`
RESULTS = {"status", "best", "best_step", "best_shared", "final"}  # a filter by one of them chooses by the result
CONSTANTS: Mapping[str, Any] = {"null": None, "true": True, "false": False}


@dataclass(frozen=True)
class Column:
    """A column of a table; `name` is its heading in files, with the unit, and `header` its heading in the terminal."""

    key: str
    name: str
    header: str
    value: Callable[[ComparedRun], Any]
    show: Callable[[Any], str] = str
    is_text: bool = False


def with_commas(value: float) -> str:
    return f"{value:,.0f}"


def place_text(equal: EqualPlace) -> str:
    """Return a text such as `step 200`, `1.05M tokens`, `3.2P FLOPs` or `1m15s`."""
    match equal.axis:
        case "step":
            return f"step {equal.place:.0f}"
        case "seconds":
            return duration(equal.place) if equal.place >= 60 else f"{equal.place:.3g}s"
    return f"{si(equal.place)} {'FLOPs' if equal.axis == 'flops' else equal.axis}"


def available_columns(
    runs: Sequence[ComparedRun], metric: str, places: Mapping[str, EqualPlace], better: int | None = None
) -> dict[str, Column]:
    """Return all columns of these runs by key, in the order in which a table shows them.

    `better` is 1 or −1, as `sign` returns it; None means that the name of the metric decides.
    """
    better = better or sign(metric)
    shared = shared_steps(runs, metric)
    folders = dict(zip((run.path for run in runs), folder_names([run.path for run in runs]), strict=True))
    # If folder names are long, the table shows labels (the settings that differ) in their place.
    longest = max(map(len, folders.values()), default=0)
    shown = {folders[run.path]: run.label if longest > MAX_FOLDER_CHARS else folders[run.path] for run in runs}
    for place in below_their_trunk(runs):
        name = folders[runs[place].path]
        shown[name] = f"{BRANCH}{shown[name]}"
    names = short_names(differing_keys(runs))
    found = [
        Column("run", "run", "run", lambda run: folders[run.path], lambda name: shown.get(name, name), True),
        Column("path", "path", "path", lambda run: str(run.path), is_text=True),
        Column("label", "label", "label", lambda run: run.label, is_text=True),
        *(config_column(key, name) for key, name in names.items()),
        Column("parent", "parent", "parent", lambda run: run.parent, is_text=True),
        Column(
            "branch_step",
            "step of the branch",
            "branch step",
            lambda run: _as_whole_number(branch_step(run)),
            with_commas,
        ),
        Column("status", "status", "status", lambda run: run.status, is_text=True),
        Column("steps", "steps", "steps", lambda run: run.steps, with_commas),
        Column("tokens", "tokens", "tokens", lambda run: _as_whole_number(_logged_or_in_result(run, "tokens")), si),
        Column("flops", "FLOPs", "FLOPs", lambda run: _as_whole_number(_training_flops(run)), si),
        Column("seconds", "seconds", "time", lambda run: run.last("seconds"), duration),
        Column("host", "host", "host", lambda run: _recorded(run, "host"), is_text=True),
        Column("device", "device", "device", lambda run: _recorded(run, "device"), is_text=True),
        Column("parameters", "parameters", "params", lambda run: _as_whole_number(run.parameters), si),
        *(_column_at(metric, equal) for equal in places.values()),
        Column("best", f"best {metric}", "best", lambda run: best_value(run, metric, better)[0], loss_text),
        Column(
            "best_step",
            f"step of the best {metric}",
            "at step",
            lambda run: _as_whole_number(best_value(run, metric, better)[1]),
            with_commas,
        ),
        Column(
            "best_shared",
            f"best {metric} at the {counted(len(shared), 'step')} that all runs share",
            "best shared",
            lambda run: best_value(run, metric, better, shared)[0],
            loss_text,
        ),
        Column("final", f"final {metric}", "final", lambda run: final_value(run, metric), loss_text),
        Column("tokens_per_second", "tokens/s (median)", "tok/s", median_speed, si),
    ]
    return {column.key: column for column in found}


def config_column(key: str, header: str) -> Column:
    is_text = key in RECORDED_KEYS  # a run without this fact shows nothing, not null
    return Column(key, key, header, lambda run: run.value_of(key), lambda value: setting_text(value, key), is_text)


def find_column(key: str, columns: Mapping[str, Column], runs: Sequence[ComparedRun], option: str) -> Column:
    """Return the column with this key or heading.

    `key` may also be a config key, or the last part of one if only one config key ends with it.

    Raises:
        ValueError: no column matches; the message names the nearest key.
    """
    if (name := ALIASES.get(key, key)) in columns:
        return columns[name]
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    ending = [column.key for column in columns.values() if column.key.endswith(f".{key}")] or [
        name for name in keys if name.endswith(f".{key}")
    ]
    if key in keys or len(ending) == 1:
        return config_column(key if key in keys else ending[0], key)
    if headed := [column for column in columns.values() if column.header == key]:
        return headed[0]
    if ending:
        raise ValueError(f"{option}: {key} is ambiguous; write {' or '.join(ending)}")
    known = [*columns, *keys]
    last_parts = {name.rpartition(".")[2]: name for name in reversed(known)}
    near = difflib.get_close_matches(key, known, n=1) or [
        last_parts[part] for part in difflib.get_close_matches(key.rpartition(".")[2], last_parts, n=1)
    ]
    nearest = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(columns)} and every config key"
    raise ValueError(f"{option}: {key}: unknown key{nearest}")


def filter_runs(
    runs: Sequence[ComparedRun], conditions: Sequence[str], columns: Mapping[str, Column]
) -> list[ComparedRun]:
    """Return the runs that meet all conditions, such as `optimizer.lr>1e-3` or `status=completed`.

    Raises:
        ValueError: a condition cannot be parsed, or its key is unknown.
    """
    for text in conditions:
        option, match = f"--filter {text!r}", _parse_condition(text)
        column = find_column(match["key"], columns, runs, option)
        if not match["value"]:
            raise ValueError(f"{option}: no value after {match['comparison']}; write KEY{match['comparison']}VALUE")
        wanted, compare = _parse_value(match["value"]), COMPARISONS[match["comparison"]]
        if match["comparison"].strip("=!") and not isinstance(wanted, float):
            raise ValueError(f"{option}: {match['comparison']} needs a number, and {match['value']} is not one")
        runs = [run for run in runs if _holds(column.value(run), compare, wanted, match["comparison"])]
    return list(runs)


def selection_notes(
    runs: Sequence[ComparedRun], conditions: Sequence[str], columns: Mapping[str, Column]
) -> list[Note]:
    """Return a note if conditions about the result leave out some of the runs, because the rest are no fair sample."""
    keys = {text: find_column(_parse_condition(text)["key"], columns, runs, text).key for text in conditions}
    about_result = [text for text, key in keys.items() if key in RESULTS or key.startswith("at_")]
    meant = filter_runs(runs, [text for text in conditions if text not in about_result], columns)
    kept = {run.path for run in filter_runs(meant, about_result, columns)}
    if not (left := [run for run in meant if run.path not in kept]):
        return []
    text = (
        f"--filter {' '.join(map(repr, about_result))} chooses by the result and leaves out {len(left)} of "
        f"{len(meant)} runs ({names(left)}): a setting whose bad runs are left out looks better than it is"
    )
    return [Note("chosen by result", text, [run.label for run in left], mark="of runs chosen by their result")]


def _holds(value: Any, compare: Callable[[Any, Any], bool], wanted: Any, comparison: str) -> bool:
    if isinstance(wanted, float):
        value = as_float(value)
        return compare(value, wanted) if math.isfinite(value) else comparison == "!="
    if isinstance(wanted, str):
        value = value if isinstance(value, str) else setting_text(value)
        # A class matches by its name alone: `model._target_=Llama`.
        value = value.rpartition(".")[2] if "." not in wanted and value.endswith(f".{wanted}") else value
    return compare(value, wanted)


def sort_runs(runs: Sequence[ComparedRun], column: Column, descending: bool) -> list[ComparedRun]:
    """Return the runs sorted by a column: numbers before texts, and runs without a value last in both directions."""

    def key(run: ComparedRun) -> tuple[int, float, str]:
        value = column.value(run)
        as_number = as_float(value)
        return (0, as_number, "") if math.isfinite(as_number) else (1, 0.0, setting_text(value, column.key))

    def has_no_value(run: ComparedRun) -> bool:
        value = column.value(run)
        return value is None or (isinstance(value, float) and not math.isfinite(value))

    ranked = sorted((run for run in runs if not has_no_value(run)), key=key, reverse=descending)
    return [*ranked, *filter(has_no_value, runs)]


def _column_at(metric: str, equal: EqualPlace) -> Column:
    mark = "" if equal.exact else "*"
    return Column(
        f"at_{equal.axis}",
        f"{metric} at {_place_in_full(equal)}" + ("" if equal.exact else " (interpolated)"),
        f"@{place_text(equal)}{mark}",
        lambda run: value_at(run, metric, equal),
        loss_text,
    )


def _place_in_full(equal: EqualPlace) -> str:
    unit = {"step": "step {:.0f}", "tokens": "{:.0f} tokens", "flops": "{:.6g} FLOPs", "seconds": "{:.3f} seconds"}
    return unit[equal.axis].format(equal.place)


def _recorded(run: ComparedRun, key: str) -> str | None:
    """Return a text of the run's environment."""
    value = run.environment.get(key)
    return printable(value) if isinstance(value, str) else None


def _logged_or_in_result(run: ComparedRun, key: str) -> float:
    """Return the last logged value or, if larger, the result's, which also counts steps that were not logged."""
    recorded = as_float(run.result.get(key))
    return float(np.fmax(recorded, run.last(key)))


def _training_flops(run: ComparedRun) -> float:
    return _logged_or_in_result(run, "tokens") * run.flops_per_token


def _as_whole_number(value: float) -> float:
    """Return a whole number as an int, so that files show it without a decimal point."""
    return int(value) if value.is_integer() else value


def _parse_condition(text: str) -> re.Match[str]:
    if (match := CONDITION.fullmatch(text)) is None:
        raise ValueError(f"--filter {text!r}: not a condition; write KEY=VALUE, or use !=, <, <=, > or >= for =")
    return match


def _parse_value(text: str) -> Any:
    if text.lower() in CONSTANTS:
        return CONSTANTS[text.lower()]
    try:
        return float(text)
    except ValueError:
        return text
