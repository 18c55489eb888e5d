"""A run with strange files is left out with a message that names it, and the other runs are compared."""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.synthetic_runs import write_run

from lmtrain.commands.compare import main
from lmtrain.comparison.columns import available_columns, sort_runs
from lmtrain.comparison.output.page_data import as_script, page_data
from lmtrain.comparison.output.picture import as_svg
from lmtrain.comparison.output.terminal_view import show_comparison
from lmtrain.comparison.output.text_files import as_csv, as_json, as_markdown
from lmtrain.comparison.run_comparison import RunComparison, compare
from lmtrain.comparison.run_files import MAX_KEYS, read_sample
from lmtrain.comparison.runs import load_runs

GOOD = 4
DEPTH = 1200
HUGE = f"1{'0' * 400}"
NUMBERS = [HUGE, f"-{HUGE}", "1" * 5000, "1e308", "-1e308", "1e200", "1e-320", "-1"]
JSON_VALUES = [*NUMBERS, "1e999", "NaN", "-Infinity", "null", "true", "{}", "[]", "[[1]]", '{"a": {"b": [NaN]}}', '""',
               '"5"', '"a\\u0000b"', '"\\ud800"', '"2024-01-01"', '"\\u001b[2J"', '"=1+1"', "[" * 10_000]  # fmt: skip
YAML_VALUES = [*NUMBERS, ".nan", ".inf", "-.inf", "null", "true", "{}", "[]", "[[1]]", "[.nan]", "''", "'5'",
               "2024-01-01", "2024-01-01T00:00:00Z", "[2024-01-01, {1: 2, a: b}]", "{1: 2, 2024-01-01: 4}", "{[1]: 2}",
               "!!binary aGVsbG8=", "!!set {a, b}", "!!omap [a: 1]", "!!int ''", "!!float ''",
               "!!bool x", "!!timestamp x", "1:30:59", '"a\\0b"', '"\\e[2J"', '"a\\nb"', "'=1+1'",
               "[" * 45 + "]" * 45, "[" * 60]  # fmt: skip
PLACES = {
    "metrics.jsonl": ("step", "val/loss", "tokens", "seconds", "new"),
    "result.json": ("status", "steps", "tokens", "error", "config_hash"),
    "environment.json": ("model", "model.parameters", "model.flops_per_token", "data", "run_id", "forked_from",
                         "forked_from.run", "forked_from.step"),
    "config.yaml": ("optimizer.lr", "optimizer.betas", "seed", "fork", "data.path"),
}  # fmt: skip
WHOLE = ("", "[]", "[1]", "5", "null", '"x"', "\0", "{", "\ud800", "a: [", "{}")
WHOLE_FILES = [
    *((file, text) for file in PLACES for text in WHOLE),
    ("config.yaml", "".join(f"k{number}: 1\n" for number in range(MAX_KEYS + 1))),
    ("config.yaml", f"seed: 1{':0' * 400_000}\n"),
    ("config.yaml", "a\\0\x85b: 1\n? [1]\n: 2\n"),
    ("config.yaml", "1: 1\nnull: 2\n2024-01-01: 3\n.nan: 4\n"),
    ("metrics.jsonl", '{"a": 1}\n'),
    ("metrics.jsonl", '{"step": null}\n{"step": NaN}\n{"step": Infinity}\n'),
    ("metrics.jsonl", '{"step": 1, "a\\u0000b": 1, "\\ud800": 2, "\\u001b[2J": 3, "": 4}\n'),
]  # fmt: skip
OUTPUTS: tuple[Callable[[RunComparison], object], ...] = (
    show_comparison, as_csv, as_json, as_markdown, lambda comparison: as_script(page_data(comparison)), as_svg
)  # fmt: skip


def put(run: Path, file: str, key: str, value: str) -> None:
    """Set a key in a run's file to a value that is given as JSON or YAML text; in metrics.jsonl, in the last line."""
    *earlier, last = (run / file).read_text().splitlines()
    if file == "config.yaml":
        # A key that is repeated at the end of the file replaces the earlier value.
        first, *rest = key.split(".")
        text = "\n".join([*earlier, last, f"{first}: {{{rest[0]}: {value}}}" if rest else f"{first}: {value}"])
    else:
        content = json.loads(last if file == "metrics.jsonl" else "\n".join([*earlier, last]))
        *parents, name = key.split(".")
        part = content
        for parent in parents:
            part = part.setdefault(parent, {})
        part[name] = "PLACE"
        text = json.dumps(content).replace('"PLACE"', value)
        text = "\n".join([*earlier, text] if file == "metrics.jsonl" else [text])
    (run / file).write_text(f"{text}\n")


def write_good_runs(folder: Path) -> Path:
    """Write two settings with two seeds each in `folder`, and return another run, outside of it, to damage."""
    for number in range(GOOD):
        changes = {"optimizer.lr": 1e-3 * (1 + number // 2), "seed": number % 2}
        write_run(folder / f"good{number}", changes, final_loss=3 + number / 10, steps=20, eval_interval=10)
    return write_run(folder.parent / "pattern", {"optimizer.lr": 2e-3, "seed": 2}, steps=4, eval_interval=1)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Make warnings errors: a warning of numpy, such as an overflow, would be printed among the tables."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def compare_in_every_way(folder: Path) -> tuple[set[str], str]:
    """Return the names of the runs that were compared, and the warnings about the others."""
    lines: list[str] = []
    runs = load_runs([folder], lines.append)
    for value in ("at-tokens", "at-step"):
        compared = compare(runs, value=value)
    for output in OUTPUTS:
        content = output(compared)
        if isinstance(content, str):
            content.encode()
    for column in available_columns(runs, "val/loss", compared.places).values():
        sort_runs(runs, column, descending=True)
    return {run.path.name for run in runs}, "\n".join(lines)


@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        ("metrics.jsonl", "step", "Infinity", "strange/metrics.jsonl: "),
        ("metrics.jsonl", "step", "-1", "strange/metrics.jsonl: "),
        ("metrics.jsonl", "step", "NaN", "strange/metrics.jsonl: "),
        ("metrics.jsonl", "step", "null", "strange/metrics.jsonl: "),
        ("metrics.jsonl", "val/loss", HUGE, "strange/metrics.jsonl: "),
        ("result.json", "tokens", HUGE, "result.json: tokens is '1000"),
        ("result.json", "status", "[]", "result.json: status is '[]', not a text"),
        ("environment.json", "model.parameters", HUGE, "environment.json: model.parameters is '1000"),
        ("environment.json", "forked_from.run", '"a\\u0000b"', ""),
        ("config.yaml", "optimizer.lr", HUGE, "config.yaml: optimizer.lr: a number too large for any setting"),
        ("config.yaml", "optimizer.lr", "!!int ''", "config.yaml: not the YAML of a config (string index"),
        ("config.yaml", "seed", "[1, 2024-01-01, {1: 2, a: b}]", ""),
        ("config.yaml", "fork", '"a\\0b"', ""),
    ],
)
def test_a_strange_value_affects_no_other_run(tmp_path: Path, file: str, key: str, value: str, said: str) -> None:
    write_good_runs(tmp_path / "runs").rename(tmp_path / "runs" / "strange")
    put(tmp_path / "runs" / "strange", file, key, value)
    lines: list[str] = []
    runs = load_runs([tmp_path / "runs"], lines.append)
    as_markdown(compare(runs))
    assert len(lines) == bool(said)
    assert said in "".join(lines)
    assert len(runs) == GOOD + (file == "metrics.jsonl" or not said)


@pytest.mark.slow
def test_any_value_in_any_file_is_handled(tmp_path: Path) -> None:
    pattern = write_good_runs(folder := tmp_path / "runs")
    for file, keys in PLACES.items():
        for key in keys:
            for number, value in enumerate(YAML_VALUES if file == "config.yaml" else JSON_VALUES):
                name = f"{file}:{key.replace('/', '.')}:{number}:"
                put(shutil.copytree(pattern, folder / name), file, key, value)
    for number, (file, text) in enumerate(WHOLE_FILES):
        run = shutil.copytree(pattern, folder / f"{file}:all:{number}:")
        (run / file).write_text(text, encoding="utf-8", errors="surrogatepass")
    compared, warned = compare_in_every_way(folder)
    for run in folder.iterdir():
        if run.name.startswith(("good", "metrics.jsonl:")):
            assert run.name in compared
        else:
            assert run.name in compared or f"left out: {run}" in warned


@pytest.mark.slow
def test_folders_nested_beyond_the_recursion_limit_are_searched(tmp_path: Path) -> None:
    write_good_runs(tmp_path / "runs")
    with contextlib.chdir(tmp_path / "runs"):
        for _ in range(DEPTH):
            os.mkdir("d")
            os.chdir("d")
        try:
            assert len(load_runs([tmp_path / "runs"])) == GOOD
        finally:  # the clean-up of temporary folders may be recursive
            for _ in range(DEPTH):
                os.chdir("..")
                os.rmdir("d")


def test_the_command_names_the_runs_it_leaves_out_and_compares_the_rest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_good_runs(tmp_path / "runs").rename(tmp_path / "runs" / "str\x1b[2Jange")
    put(tmp_path / "runs" / "str\x1b[2Jange", "result.json", "steps", '"five"')
    assert main([str(tmp_path / "runs")]) == 0
    shown = capfd.readouterr()
    assert "4 runs, val/loss" in shown.out
    assert shown.err.endswith("str\\x1b[2Jange/result.json: steps is 'five', not a whole number\n")
    assert len(shown.err.splitlines()) == 1


def test_the_last_texts_of_training_are_shown_before_the_one_at_the_end(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "sample.txt").write_text("at the end", encoding="utf-8")
    assert read_sample(run) == "at the end"
    lines = [{"step": step, "prompt": prompt, "text": f"{step}"} for step in (5, 10) for prompt in ("a", "")]
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert read_sample(run) == "after step 10\n\na▸10\n\n▸10"
    for damage in ("", "{", "[]\n", '{"step": 1}\n', "[" * 100_000):
        (run / "samples.jsonl").write_text(damage, encoding="utf-8")
        assert read_sample(run) == "at the end"
