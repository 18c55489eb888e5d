"""Writes a comparison as CSV, JSON and Markdown; CSV and JSON have all digits."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lmtrain.comparison.columns import Column
from lmtrain.comparison.labels import setting_text
from lmtrain.comparison.output.effects_table import effect_sentences
from lmtrain.comparison.output.tables import cell_text, default_columns, group_headers, group_rows
from lmtrain.comparison.run_comparison import RunComparison
from lmtrain.comparison.runs import ComparedRun
from lmtrain.comparison.statistics.conclusions import Conclusions
from lmtrain.comparison.statistics.significance import half_width
from lmtrain.comparison.worth_of_settings import worth_in_words, worth_of_settings
from lmtrain.files.numbers import is_number, nan_as_null
from lmtrain.terminal.as_text import visible

FORMULA = re.compile(r"\s*[-=+@\uff0b\uff0d\uff1d\uff20]")  # how a spreadsheet formula begins, also in full width
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")  # not the _ in batch_size
ADDRESS = re.compile(r":(?=//)|(?<=www)\.", re.IGNORECASE)  # becomes a link even without markup
LIST_OR_HEADING = re.compile(r"^(\d*)([-+#.)]+)(?=\s|$)")


def as_csv(comparison: RunComparison) -> str:
    """Return CSV with a line per run and the requested columns (default: all); a missing value is empty."""
    columns = comparison.columns.values() if comparison.asked is None else comparison.asked
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_as_plain_text(column.name) for column in columns])
    for run in comparison.runs:
        writer.writerow([_csv_field(column, run) for column in columns])
    return file.getvalue()


def as_json(comparison: RunComparison) -> str:
    """Return JSON with all numbers, sentences and notes of the comparison.

    If some runs measure something else than others, `class` is the title of those that the statistics are about, and
    `other_classes` has the statistics of the others.
    """
    (title, first), *others = comparison.parts
    content = {
        "metric": comparison.metric,
        "better": "lower" if comparison.better > 0 else "higher",
        "value_kind": comparison.value_kind,
        "value": comparison.value,
        "goal": comparison.goal,
        "equal": {axis: asdict(equal) for axis, equal in comparison.places.items()},
        "differing_keys": comparison.keys,
        "runs": [
            {
                **{key: column.value(run) for key, column in comparison.columns.items() if key not in comparison.keys},
                "config": {key: run.value_of(key) for key in comparison.keys},
                "reached": None if place is None else dict(place),
            }
            for run, place in zip(comparison.runs, comparison.reached, strict=True)
        ],
        "families": [
            {
                "trunk": family.trunk,
                "trunks": [run.label for run in family.trunks],
                "branches": [
                    {"label": run.label, "step": run.branch and run.branch.step, "steps": run.steps}
                    for run in family.branches
                ],
            }
            for family in comparison.families
        ],
        "class": title,
        **_statistics(first),
        "other_classes": [
            {"class": other_title, **_statistics(other), "sentences": other.conclusions.sentences}
            for other_title, other in others
        ],
        "looks": {"mode": comparison.looks.mode, "reason": comparison.looks.reason},
        "reach": comparison.reach and asdict(comparison.reach),
        "sentences": comparison.conclusions.sentences,
        "notes": [asdict(note) for note in comparison.notes],
    }
    return json.dumps(nan_as_null(content), indent=2, allow_nan=False) + "\n"


def _statistics(comparison: RunComparison) -> dict[str, Any]:
    """Return the statistics of runs that measure the same."""
    conclusions = comparison.conclusions
    return {
        "groups": [
            {
                "label": group.label,
                "settings": group.settings,
                "seeds": list(group.values),
                "values": group.sample,
                "mean": group.mean,
                "half_width_95": half_width(group.sample),
                "diverged": list(group.diverged),
                "missing": dict(group.missing),
            }
            for group in conclusions.groups
        ],
        "noise_between_seeds": conclusions.noise and asdict(conclusions.noise),
        **_verdicts(conclusions),
        "effects": [
            {**asdict(effect), "means": [{"value": value, "mean": mean} for value, mean in effect.means.items()]}
            for effect in conclusions.effects.effects
        ],
        "interactions": [asdict(interaction) for interaction in conclusions.effects.interactions],
        "effect_sentences": effect_sentences(conclusions.effects),
        "savings": [
            {
                "better": worth.better.label,
                "worse": worth.worse.label,
                "decided": worth.decided,
                **{axis: asdict(saving) for axis, saving in worth.savings.items()},
            }
            for worth in worth_of_settings(comparison)
        ],
    }


def _verdicts(conclusions: Conclusions) -> dict[str, Any]:
    """Return the verdicts, and how they were found."""
    method = conclusions.method
    return {
        "method": method and asdict(method),
        "margin": conclusions.margin,
        "best_among": [group.label for group in conclusions.among],
        "best_on_new_seeds": conclusions.on_new_seeds,
        "baseline": conclusions.baseline and conclusions.baseline.label,
        "comparisons_with_the_baseline" if conclusions.baseline else "comparisons_with_the_best": [
            {
                "other": pair.other.label,
                "verdict": pair.verdict,
                "difference": pair.difference.value,
                "half_width_95": pair.difference.half_width,
                "standard_error": pair.difference.standard_error,
                "df": pair.difference.df,
                "test": pair.difference.test,
                "by_ranks": pair.by_ranks,
                "p_uncorrected": pair.difference.p,
                "p": pair.p,
                "p_same_within_margin": pair.p_same,
                "p_no_worse_by_margin": pair.p_no_worse,
                "sentence": pair.sentence,
            }
            for pair in conclusions.comparisons
        ],
    }


def as_markdown(comparison: RunComparison) -> str:
    """Return Markdown with the tables of runs and settings, and with the conclusions and notes about them."""
    columns: Sequence[Column]
    columns, same = default_columns(comparison.columns, comparison.runs, comparison.keys)
    if comparison.asked is not None:
        columns, same = comparison.asked, []
    rows = [[cell_text(column, run) for column in columns] for run in comparison.runs]
    lines = _markdown_table([column.header for column in columns], [column.is_text for column in columns], rows)
    if same:
        lines += [f"The same for all: {', '.join(map(_escape_markdown, same))}.", ""]
    lines += [f"Based on {_escape_markdown(comparison.value)}:", "", *map(_list_item, comparison.refusals)]
    for title, part in comparison.parts:
        lines += ["", f"{_escape_markdown(title)}:", ""] if title else []
        conclusions = part.conclusions
        if conclusions.comparisons:
            headers = group_headers(conclusions)
            lines += _markdown_table(headers, [True, *[False] * (len(headers) - 1)], group_rows(conclusions))
        lines += map(_list_item, [*conclusions.sentences, *worth_in_words(part)])
    lines += [""] * (len(comparison.parts) > 1) + [_list_item(str(note)) for note in comparison.further_notes]
    return "\n".join(lines) + "\n"


def _markdown_table(headers: Sequence[str], is_text: Sequence[bool], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table, followed by an empty line."""
    above = "|" + "|".join("---" if left else "---:" for left in is_text) + "|"
    first, *others = ["| " + " | ".join(map(_escape_markdown, row)) + " |" for row in [headers, *rows]]
    return [first, above, *others, ""]


def _csv_field(column: Column, run: ComparedRun) -> Any:
    value = column.value(run)
    if is_number(value):
        return value if math.isfinite(value) else ""
    return "" if value is None and column.is_text else _as_plain_text(setting_text(value))


def _as_plain_text(text: str) -> str:
    """Return a text that a spreadsheet does not read as a formula, because a formula could start a program."""
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def _escape_markdown(text: str) -> str:
    """Return a text on one line, escaped so that Markdown shows it literally: no link, image, HTML or emphasis."""
    text = visible(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return ADDRESS.sub(r"\\\g<0>", MARKDOWN.sub(r"\\\g<0>", text))


def _list_item(text: str) -> str:
    return "- " + LIST_OR_HEADING.sub(r"\1\\\2", _escape_markdown(text))
