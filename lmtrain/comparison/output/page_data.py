"""Collects the data of a comparison's page in one JSON object, with thinned curves and the configs' differences."""

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from lmtrain.comparison.columns import place_text
from lmtrain.comparison.labels import setting_text, short_names
from lmtrain.comparison.lineage.families import below_their_trunk, is_branch, joined_to_trunks
from lmtrain.comparison.output.family_names import family_names
from lmtrain.comparison.output.tables import group_headers, group_rows
from lmtrain.comparison.run_comparison import RunComparison
from lmtrain.comparison.run_values import best_value, final_value, median_speed, value_at
from lmtrain.comparison.runs import AXES, ComparedRun, forked_from
from lmtrain.comparison.statistics.importance import importance
from lmtrain.comparison.worth_of_settings import worth_in_words
from lmtrain.files.numbers import finite_or_none

LOSS_POINTS, POINTS = 400, 160  # per curve of a loss and of another metric, with up to FULL_RUNS runs
FULL_RUNS = 100
FEWEST_POINTS = 40  # per curve, with any number of runs
FIRST_METRICS = ("val/loss", "train/loss", "grad_norm", "lr", "tokens_per_second")
MAX_SAMPLE_CHARS = 4000


def page_data(comparison: RunComparison) -> dict[str, Any]:
    """Return the input of the page's script; the comparison must have at least one run."""
    runs, differing = comparison.runs, comparison.keys
    members, families = comparison.members, family_names(comparison)
    curves, below = joined_to_trunks(runs), below_their_trunk(runs)
    groups = comparison.conclusions.groups
    metrics = _metric_names(runs, comparison.metric)
    effects = {key: effect for effect in comparison.conclusions.effects.effects for key in (effect.key, *effect.alike)}
    # A value for each group: runs of one setting are not independent.
    found = [importance(key, [group.settings.get(key) for group in groups], [group.mean for group in groups])
             for key in differing if key != "seed"]  # fmt: skip
    share = min(1.0, FULL_RUNS / max(1, len(runs)))
    flat = [{key: setting_text(value, key) for key, value in run.config.items()} for run in runs]
    common = {key: value for key, value in flat[0].items() if all(other.get(key) == value for other in flat)}
    index = {str(run.path.resolve()): number for number, run in enumerate(runs)}
    units = Counter(group for group, _ in {(member.group, member.unit) for member in members if member.counts})
    return {
        "metrics": metrics,
        "axes": [axis for axis in AXES if any(np.isfinite(run.metrics[axis]).any() for run in runs)],
        "keys": [{"key": key, "name": name} for key, name in short_names(differing).items()],
        "importance": [
            vars(one)
            | {"size": finite_or_none(effect and effect.size), "effect_p": finite_or_none(effect and effect.p)}
            for one in sorted(filter(None, found), key=lambda one: -one.share)
            for effect in [effects.get(one.key)]
        ],
        "metric": comparison.metric,
        "sign": comparison.better,
        "value": comparison.value,
        "groups": _table_of_groups(comparison),
        "sentences": [
            *comparison.conclusions.sentences,
            *(f"{title}: " * bool(title) + text for title, part in comparison.parts for text in worth_in_words(part)),
            *(f"note: {note}" for note in comparison.further_notes),
        ],
        "families": families.names,
        "facts": _table_columns(comparison),
        "sorted": _compared_column(comparison),
        "common": common,
        # Two-sided 95% quantiles of Student's t, by degrees of freedom; none below one.
        "t": [None, *(float(t) for t in stats.t.ppf(0.975, np.arange(1, max([2, *units.values()]))))],
        "runs": [
            {
                "label": run.label,
                "path": str(run.path),
                "status": run.status,
                "group": member.group,
                "setting": member.label,
                "unit": member.unit,
                "outcome": finite_or_none(member.value),
                "values": [_axis_value(run.value_of(key), key) for key in differing],
                "config": {key: value for key, value in flat[number].items() if key not in common},
                "parameters": finite_or_none(run.parameters),
                "parent": run.parent,
                "family": families.number[number],
                "branch": is_branch(run),
                "below": number in below,
                "origin": index.get(str(forked_from(run).get("run"))),
                "sample": run.sample[:MAX_SAMPLE_CHARS] if run.sample else None,
                "axes": _packed_axes(curves[number], max(FEWEST_POINTS, int(LOSS_POINTS * share))),
                "series": {
                    metric: _packed_series(curves[number], metric, share) for metric in metrics if metric in run.metrics
                },
            }
            for number, (run, member) in enumerate(zip(runs, members, strict=True))
        ],
    }


def as_script(data: Mapping[str, Any]) -> str:
    """Return JSON that is safe inside a script element, whatever texts the data contain."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def thin_curve(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return at most `most` points of a curve (x, y) and its local means (x, y).

    The points include the lowest and the highest of each stretch of the curve, and both ends. The means are taken over
    the same stretches, for smoothing; they are empty if all points are kept.
    """
    if len(x) <= most:
        return x, y, np.empty(0), np.empty(0)
    width = -(-len(x) // max(1, (most - 2) // 2))
    rows = -(-len(x) // width)
    padded = np.full((2, rows * width), np.nan)
    padded[:, : len(x)] = x, y
    xs, ys = padded.reshape(2, rows, width)
    starts = np.arange(rows) * width
    kept = np.unique([*(starts + np.nanargmin(ys, 1)), *(starts + np.nanargmax(ys, 1)), 0, len(x) - 1])
    return x[kept], y[kept], np.nanmean(xs, 1), np.nanmean(ys, 1)


def _metric_names(runs: Sequence[ComparedRun], first: str) -> list[str]:
    """Return the logged metrics, the compared one first."""
    found = dict.fromkeys(name for run in runs for name in run.metrics if name not in AXES)
    logged = [name for name in found if any(len(run.series(name)[0]) for run in runs)]
    return [name for name in dict.fromkeys([first, *FIRST_METRICS, *logged]) if name in logged]


def _packed_series(run: ComparedRun, metric: str, share: float) -> list[str]:
    """Return the packed steps and values of a thinned curve, and the steps and values of its local means."""
    x, y = run.series(metric)
    most = max(FEWEST_POINTS, int((LOSS_POINTS if metric.endswith("loss") else POINTS) * share))
    return [_packed(part) for part in thin_curve(x, y, most)]


def _packed_axes(run: ComparedRun, most: int) -> dict[str, str]:
    """Return a run's packed steps, tokens, FLOPs and seconds, which the page interpolates."""
    rows = len(run.metrics["step"])
    kept = np.unique(np.linspace(0, rows - 1, min(rows, most)).astype(int)) if rows else np.empty(0, int)
    return {axis: _packed(run.metrics[axis][kept]) for axis in AXES}


def _packed(numbers: np.ndarray) -> str:
    """Return the numbers as little-endian float32 in base64; seven digits are more than a screen can show."""
    with np.errstate(over="ignore"):
        return base64.b64encode(np.asarray(numbers, "<f4").tobytes()).decode()


def _table_columns(comparison: RunComparison) -> list[dict[str, Any]]:
    """Return the table's columns: a name, a kind (`value`, `count` or `time`), and a number for each run."""
    metric, better, runs = comparison.metric, comparison.better, comparison.runs
    goal = f"to reach {comparison.goal:.4g}"
    columns: list[tuple[str, str, Sequence[float]]] = [
        ("best", "value", [best_value(run, metric, better)[0] for run in runs])
    ]
    if equal := comparison.places.get("step"):
        columns.append((f"at {place_text(equal)}", "value", [value_at(run, metric, equal) for run in runs]))
    columns += [
        ("final", "value", [final_value(run, metric) for run in runs]),
        ("steps", "count", [run.steps for run in runs]),
        ("tokens", "count", [run.last("tokens") for run in runs]),
        ("FLOPs", "count", [run.last("flops") for run in runs]),
        ("time", "time", [run.last("seconds") for run in runs]),
        ("tokens/s", "count", [median_speed(run) for run in runs]),
        (f"tokens {goal}", "count", [reached["tokens"] if reached else np.nan for reached in comparison.reached]),
        (f"time {goal}", "time", [reached["seconds"] if reached else np.nan for reached in comparison.reached]),
    ]
    return [
        {"name": name, "kind": kind, "values": list(map(finite_or_none, numbers))} for name, kind, numbers in columns
    ]


def _compared_column(comparison: RunComparison) -> str | None:
    """Return the name of the table's column for the compared value; `best` if there is none.

    None means that families stay together: the runs of different ends are no competitors.
    """
    if comparison.families and comparison.value_kind == "final":
        return None
    equal = comparison.places.get("step")
    if comparison.value_kind == "at-step" and equal:
        return f"at {place_text(equal)}"
    return "final" if comparison.value_kind == "final" else "best"


def _axis_value(value: Any, key: str) -> float | str:
    """Return a value for an axis: a finite number as it is, anything else as text."""
    number = finite_or_none(value)
    return setting_text(value, key) if number is None else number


def _table_of_groups(comparison: RunComparison) -> list[list[str]]:
    """Return the headers and the rows of the table of settings; empty without verdicts."""
    compared = [(title, conclusions) for title, conclusions in comparison.classes if conclusions.comparisons]
    headers = [group_headers(conclusions) for _, conclusions in compared[:1]]
    rows = [
        [f"{title}: {label}" if title else label, *cells]
        for title, conclusions in compared
        for label, *cells in group_rows(conclusions)
    ]
    return headers + rows
