"""Makes tables and pictures from the results, and puts the tables into the pages that show them."""

import csv
import json
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from settings import ENTRIES, HERE, SETTINGS

RESULTS = HERE / "results"
PAGES = (HERE / "README.md", HERE.parents[1] / "README.md")
COLUMNS = ("contender", "number format", "ms per step", "tokens/s", "ratio", "spread of the ratio", "memory (GB)")
OURS = "lmtrain"
BARE_LOOP = ENTRIES["lmtrain-bare"].label
BLOCK = re.compile(r"(<!-- (\w+) of (\w+): made by experiments/peers/report\.py -->\n).*?(<!-- end -->)", re.DOTALL)


def rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each contender, the fastest first: medians over rounds, and ratios within a round."""
    made, base = [], results["base"]
    complete = [each for each in results["rounds"] if base in each]
    for name, about in results["contenders"].items():
        seconds = [each[name] for each in results["rounds"] if name in each]
        ratios = sorted(each[name] / each[base] for each in complete if name in each)
        if not seconds:
            continue
        made.append(
            {
                "name": name,
                "label": about["label"],
                "format": f"{about['dtype']}, {'compiled' if about['compiled'] else 'eager'}",
                "seconds": statistics.median(seconds),
                "ratio": statistics.median(ratios) if ratios else None,
                "spread": (ratios[0], ratios[-1]) if ratios else None,
                "peak_gb": about["peak_gb"],
                "extra_parameters": about["parameters"] - results["parameters"],
            }
        )
    return sorted(made, key=lambda row: row["seconds"])


def cells(row: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a row's texts, one for each of `COLUMNS`."""
    return (
        row["label"],
        row["format"],
        f"{1000 * row['seconds']:,.1f}" if row["seconds"] < 1 else f"{1000 * row['seconds']:,.0f}",
        f"{results['step_tokens'] / row['seconds']:,.0f}",
        "–" if row["ratio"] is None else f"{row['ratio']:.2f}",
        "–" if row["spread"] is None else f"{row['spread'][0]:.2f}–{row['spread'][1]:.2f}",
        f"{row['peak_gb']:.1f}",
    )


def markdown(results: Mapping[str, Any]) -> str:
    """Return the table of a setting; lmtrain's rows are bold."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * 2 + "|--:" * (len(COLUMNS) - 2) + "|"]
    for row in rows(results):
        texts = cells(row, results)
        bold = row["label"].startswith(OURS)
        lines.append(f"| {' | '.join(f'**{text}**' if bold else text for text in texts)} |")
    return "\n".join([*lines, "", about(results)])


def place(results: Mapping[str, Any]) -> str:
    """Return the name of the GPU, or of the CPU and its number of threads."""
    machine = results["machine"]
    return machine["gpu"] or f"{machine['cpu']} ({machine['threads']} threads)"


def base(results: Mapping[str, Any]) -> str:
    """Return the name of the contender to which ratios are."""
    entry = ENTRIES[results["base"]]
    return f"{entry.label} in {entry.dtype}"


def about(results: Mapping[str, Any]) -> str:
    """Return when, where and with which versions the results were measured."""
    machine, versions = results["machine"], {}
    for each in results["contenders"].values():
        versions |= each["versions"]
    steps = results["steps_per_round"]
    text = (
        f"{results['date']}, {place(results)}, Python {machine['python']}, "
        f"{', '.join(f'{name} {version}' for name, version in sorted(versions.items()))}. "
        f"Medians of {len(results['rounds'])} rounds of {steps} step{'s' * (steps > 1)}; "
        f"ratios are to the {base(results)}."
    )
    if results["left_out"]:
        reasons = "; ".join(f"{name} ({reason.partition(' (see')[0]})" for name, reason in results["left_out"].items())
        text += f" Left out: {reasons}."
    return text


def summary(results_by_setting: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table with the fastest entry of each tool in each setting; empty if nothing is measured yet."""
    if not results_by_setting:
        return ""
    best: dict[str, dict[str, Mapping[str, Any]]] = {}
    for setting, results in results_by_setting.items():
        for row in rows(results):
            if row["label"] == BARE_LOOP:  # what the trainer itself costs, and no tool
                continue
            best.setdefault(row["label"].partition(",")[0], {}).setdefault(setting, row)
    settings = list(results_by_setting.values())
    lines = [
        f"| time of a training step, and peak memory | {' | '.join(each['title'] for each in settings)} |",
        "|---" + "|--:" * len(settings) + "|",
    ]
    first = next(iter(results_by_setting))
    for label, found in sorted(best.items(), key=lambda item: item[1].get(first, {"seconds": 1e9})["seconds"]):
        texts = ["–" if setting not in found else summary_cell(found[setting]) for setting in results_by_setting]
        bold = label.startswith(OURS)
        lines.append(f"| {' | '.join(f'**{text}**' if bold else text for text in [label, *texts])} |")
    places = dict.fromkeys(f"{place(each)}, {each['date']}" for each in settings)
    note = (
        f"Relative to the time of the {base(settings[0])}: below 1 is faster. Each tool as it is fastest, in float32 "
        f"or bfloat16, compiled or not. Measured on {'; '.join(places)}."
    )
    return "\n".join([*lines, "", note])


def summary_cell(row: Mapping[str, Any]) -> str:
    """Return the ratio and the memory of a row, and the number format if it is not float32."""
    number = "" if row["format"].startswith("float32") else " (bfloat16)"
    return f"{'–' if row['ratio'] is None else format(row['ratio'], '.2f')}{number}, {row['peak_gb']:.1f} GB"


def load(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return the results in a folder, in the order of the settings."""
    files = {path.stem: path for path in folder.glob("*.json")}
    return {name: json.loads(files[name].read_text(encoding="utf-8")) for name in SETTINGS if name in files}


def fill(text: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a page with its marked blocks filled: `table of SETTING`, `summary of results`."""

    def block(match: re.Match[str]) -> str:
        kind, name = match[2], match[3]
        if kind == "summary":
            body = summary(results)
        else:
            body = markdown(results[name]) if name in results else "Not measured yet."
        return f"{match[1]}{body}\n{match[4]}" if body else f"{match[1]}{match[4]}"

    return BLOCK.sub(block, text)


def write_pictures_and_tables(folder: Path = RESULTS) -> None:
    """Write a CSV file and a picture beside each JSON file, and the tables into the pages."""
    results = load(folder)
    for name, each in results.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["name", *COLUMNS])
            writer.writerows([row["name"], *(text.replace(",", "") for text in cells(row, each))] for row in rows(each))
        draw(each, folder / f"{name}.png")
    if folder == RESULTS:
        for page in PAGES:
            page.write_text(fill(page.read_text(encoding="utf-8"), results), encoding="utf-8")


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw the seconds per step as horizontal bars, and write the memory beside them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawn = rows(results)[::-1]
    labels = [f"{row['label']}\n{row['format']}" for row in drawn]
    values = [1000 * row["seconds"] for row in drawn]
    colours = ["#d95f02" if row["label"].startswith(OURS) else "#9aa5b1" for row in drawn]
    figure, axes = plt.subplots(figsize=(8.5, 0.6 + 0.42 * len(drawn)))
    bars = axes.barh(labels, values, color=colours, height=0.72)
    texts = [
        f"{value:,.0f} ms" + (f" · {row['ratio']:.2f}" if row["ratio"] else "") + f" · {row['peak_gb']:.1f} GB"
        for value, row in zip(values, drawn, strict=True)
    ]
    axes.bar_label(bars, texts, padding=4, fontsize=8)
    axes.set_xlim(0, 1.3 * max(values))
    axes.set_xlabel(f"ms per optimizer step (median) · ratio to the {base(results)} · peak memory", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.set_title(
        f"{results['title']}: {results['machine']['gpu'] or results['machine']['cpu']}", fontsize=10, loc="left"
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def print_table(results: Mapping[str, Any]) -> None:
    """Print the table of a setting for a terminal."""
    table = [COLUMNS, *(cells(row, results) for row in rows(results))]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        texts = [
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(texts))
    print(about(results))


if __name__ == "__main__":
    write_pictures_and_tables()
