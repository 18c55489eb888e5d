"""A comparison as CSV, JSON and Markdown, with all digits."""

import csv
import io
import json
import math
from dataclasses import asdict
from typing import Any

from lmtrain.compare.columns import Column
from lmtrain.compare.compared import Compared
from lmtrain.compare.runs import Run, shown
from lmtrain.compare.statistics import half_width
from lmtrain.compare.table import cell, usual


def as_csv(compared: Compared) -> str:
    """A run a line, every column; empty for what there is not."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([column.name for column in compared.columns.values()])
    for run in compared.runs:
        writer.writerow([_field(column, run) for column in compared.columns.values()])
    return file.getvalue()


def as_json(compared: Compared) -> str:
    conclusions = compared.conclusions
    settings = {"metric": compared.metric, "value": compared.value, "goal": compared.goal}
    content = {
        **settings,
        "equal": {axis: asdict(equal) for axis, equal in compared.places.items()},
        "differing_keys": compared.keys,
        "runs": [
            {
                **{key: column.value(run) for key, column in compared.columns.items() if key not in compared.keys},
                "config": {key: run.config.get(key) for key in compared.keys},
                "reached": None if place is None else dict(place),
            }
            for run, place in zip(compared.runs, compared.reached, strict=True)
        ],
        "groups": [
            {
                "label": group.label,
                "settings": group.settings,
                "seeds": list(group.values),
                "values": group.sample,
                "mean": group.mean,
                "half_width_95": half_width(group.sample),
                "failed": group.failed,
            }
            for group in conclusions.groups
        ],
        "noise_between_seeds": conclusions.noise and asdict(conclusions.noise),
        "comparisons_with_the_best": [
            {
                "other": comparison.other.label,
                "difference": comparison.difference.value,
                "half_width_95": comparison.difference.half_width,
                "test": comparison.difference.test,
                "p_uncorrected": comparison.difference.p,
                "p": comparison.p,
                "sentence": comparison.sentence,
            }
            for comparison in conclusions.comparisons
        ],
        "effects": [
            {**asdict(effect), "means": [{"value": value, "mean": mean} for value, mean in effect.means.items()]}
            for effect in conclusions.effects
        ],
        "sentences": conclusions.sentences,
        "notes": compared.notes,
    }
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def as_markdown(compared: Compared) -> str:
    """The table as the terminal has it, and the sentences below."""
    columns, same = usual(compared.columns, compared.runs, compared.keys)
    lines = [
        "| " + " | ".join(_escaped(column.header) for column in columns) + " |",
        "|" + "|".join("---" if column.is_text else "---:" for column in columns) + "|",
        *("| " + " | ".join(_escaped(cell(column, run)) for column in columns) + " |" for run in compared.runs),
        "",
    ]
    if same:
        lines += [f"The same for all: {', '.join(same)}.", ""]
    lines += [f"Of {compared.value}:", ""]
    return (
        "\n".join([*lines, *(f"- {_escaped(line)}" for line in [*compared.conclusions.sentences, *compared.notes])])
        + "\n"
    )


def _field(column: Column, run: Run) -> Any:
    value = column.value(run)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if math.isfinite(value) else ""
    return "" if value is None and column.is_text else shown(value)


def _finite(value: Any) -> Any:
    """With null for NaN, which JSON has not."""
    match value:
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case float() if not math.isfinite(value):
            return None
    return value


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
