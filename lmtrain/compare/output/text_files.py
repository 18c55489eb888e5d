"""A comparison as CSV, JSON and Markdown, with all digits."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lmtrain.compare.columns import Column
from lmtrain.compare.comparison import Compared
from lmtrain.compare.labels import setting_text
from lmtrain.compare.output.tables import GROUP_HEADERS, cell, group_rows, usual
from lmtrain.compare.runs import Run
from lmtrain.compare.statistics.significance import half_width
from lmtrain.files.numbers import is_number, nan_as_null


def as_csv(compared: Compared) -> str:
    """A run a line, the columns asked for or every one; empty for what there is not."""
    columns = compared.columns.values() if compared.asked is None else compared.asked
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    for run in compared.runs:
        writer.writerow([_field(column, run) for column in columns])
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
    return json.dumps(nan_as_null(content), indent=2, allow_nan=False) + "\n"


def as_markdown(compared: Compared) -> str:
    """The tables as the terminal has them, and the sentences below."""
    columns: Sequence[Column]
    columns, same = usual(compared.columns, compared.runs, compared.keys)
    if compared.asked is not None:
        columns, same = compared.asked, []
    rows = [[cell(column, run) for column in columns] for run in compared.runs]
    lines = _table([column.header for column in columns], [column.is_text for column in columns], rows)
    if same:
        lines += [f"The same for all: {', '.join(map(_escaped, same))}.", ""]
    lines += [f"Of {compared.value}:", ""]
    conclusions = compared.conclusions
    if conclusions.comparisons:
        lines += _table(GROUP_HEADERS, [True, *[False] * (len(GROUP_HEADERS) - 1)], group_rows(conclusions))
    lines += [f"- {_escaped(line)}" for line in [*conclusions.sentences, *compared.notes]]
    return "\n".join(lines) + "\n"


def _table(headers: Sequence[str], is_text: Sequence[bool], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, and an empty one."""
    above = "|" + "|".join("---" if left else "---:" for left in is_text) + "|"
    first, *others = ["| " + " | ".join(map(_escaped, row)) + " |" for row in [headers, *rows]]
    return [first, above, *others, ""]


def _field(column: Column, run: Run) -> Any:
    value = column.value(run)
    if is_number(value):
        return value if math.isfinite(value) else ""
    return "" if value is None and column.is_text else setting_text(value)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
