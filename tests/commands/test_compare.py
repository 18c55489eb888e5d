"""Tests of the command `compare`: its output, its options and its error messages."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from support.command_line import Cli, clean_environment
from support.synthetic_runs import write_run, write_sweep

from lmtrain.commands.compare import main
from lmtrain.comparison.columns import available_columns, filter_runs, find_column, sort_runs
from lmtrain.comparison.output.tables import cell_text, default_columns, fit_to_width
from lmtrain.comparison.output.text_files import _escape_markdown, _list_item, as_csv, as_json, as_markdown
from lmtrain.comparison.run_comparison import RunComparison, compare
from lmtrain.comparison.run_values import equal_places
from lmtrain.comparison.runs import ComparedRun, load_runs
from lmtrain.errors import ConfigError
from lmtrain.terminal.as_text import visible


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> list[ComparedRun]:
    folder = tmp_path_factory.mktemp("runs")
    write_sweep(folder / "sweep", 12, seeds=3)
    worse = {"optimizer.lr": 8e-3, "seed": 4, "trainer.max_steps": 200}
    write_run(folder / "diverged", worse, final_loss=9, steps=60, status="diverged")
    return load_runs([folder])


@pytest.fixture(scope="module")
def comparison(sweep: list[ComparedRun]) -> RunComparison:
    return compare(sweep)


def names(runs: list[ComparedRun], *conditions: str) -> list[str]:
    columns = available_columns(runs, "val/loss", equal_places(runs, "val/loss"))
    return [run.path.name for run in filter_runs(runs, conditions, columns)]


def test_filters_accept_config_keys_status_and_columns(sweep: list[ComparedRun]) -> None:
    assert names(sweep, "optimizer.lr>3e-3") == ["diverged", *map(str, range(6, 12))]
    assert names(sweep, "lr = 0.001", "seed!=2") == ["0", "2"]
    assert names(sweep, "status=diverged") == ["diverged"]
    assert names(sweep, "status!=completed") == ["diverged"]
    assert names(sweep, "at_step<3.1", "optimizer.lr=0.008") == ["9", "10", "11"]
    assert names(sweep, "model._target_=Llama", "steps<=60") == ["diverged"]
    assert names(sweep, "model.n_kv_head=null", "steps>=200", "seed=1") == ["0", "3", "6", "9"]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("optimizer.lrr>1", "optimizer.lrr: unknown key; did you mean optimizer.lr?"),
        ("sed=1", "sed: unknown key; did you mean seed?"),
        ("lr", "not a condition; write KEY=VALUE"),
        ("lr>", "--filter 'lr>': no value after >; write KEY>VALUE"),
        ("lr>big", "> needs a number, and big is not one"),
        ("_target_=x", "_target_ is ambiguous; write data._target_ or model._target_"),
    ],
)
def test_an_impossible_filter_condition_is_an_error(sweep: list[ComparedRun], condition: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"--filter") as caught:
        names(sweep, condition)
    assert message in str(caught.value)


def test_missing_values_are_sorted_last(sweep: list[ComparedRun]) -> None:
    columns = available_columns(sweep, "val/loss", equal_places(sweep, "val/loss"))
    for descending in (False, True):
        ranked = sort_runs(sweep, find_column("at_step", columns, sweep, "--sort"), descending)
        assert ranked[-1].status == "diverged"
        losses = [columns["at_step"].value(run) for run in ranked[:-1]]
        assert losses == sorted(losses, reverse=descending)


def test_the_table_shows_the_columns_in_which_runs_differ(comparison: RunComparison) -> None:
    columns, same = default_columns(comparison.columns, comparison.runs, comparison.keys)
    shown = ["run", "optimizer.lr", "seed", "status", "steps", "tokens", "at_step", "best"]
    assert [column.key for column in columns] == shown
    assert "params 1M" in same
    narrow, hidden = fit_to_width(columns, comparison.runs, 40)
    assert [column.key for column in narrow] == ["run", "optimizer.lr", "seed", "at_step"]
    assert len(narrow) + len(hidden) == len(columns)


def test_runs_in_folders_with_long_names_are_labelled_by_their_differences(tmp_path: Path) -> None:
    for seed in (1, 2):
        for lr in (1e-3, 3e-3):
            folder = tmp_path / f"experiments=quickstart,n_layer=1,lr={lr},seed={seed},max_steps=40"
            write_run(folder, {"optimizer.lr": lr, "seed": seed})
    of_sweep = compare(load_runs([tmp_path]))
    lines = as_markdown(of_sweep).splitlines()
    assert lines[0] == "| run | @step 200 |"  # no extra columns that repeat lr and seed
    assert lines[2].startswith("| lr=0.001 seed=1 |")
    assert next(csv.DictReader(io.StringIO(as_csv(of_sweep))))["run"].startswith("experiments=quickstart,")


def test_untrusted_values_do_not_control_the_terminal(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"data.order": "\x1b[2J[red]shuffle\n"})
    write_run(tmp_path / "b")
    runs = load_runs([tmp_path])
    column = available_columns(runs, "val/loss", {})["data.order"]
    assert cell_text(column, runs[0]) == " [2J[red]shuffle "
    assert all(run.label.isprintable() for run in runs)


def test_csv_has_every_run_with_all_digits(comparison: RunComparison) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert len(rows) == 13
    for row, run in zip(rows, comparison.runs, strict=True):
        assert row["optimizer.lr"] == str(run.config["optimizer.lr"])
        assert row["parent"] == ""
        assert (row["tokens"], row["parameters"]) == (str(run.steps * 1024), "1000000")
        if run.status == "completed":
            assert float(row["val/loss at step 200"]) == run.series("val/loss")[1][-1]
        else:
            assert row["val/loss at step 200"] == ""


def test_json_is_strict_and_has_the_statistics(comparison: RunComparison) -> None:
    content = json.loads(as_json(comparison), parse_constant=pytest.fail)
    assert content["equal"]["step"] == {"axis": "step", "place": 200.0, "exact": True}
    assert [group["label"] for group in content["groups"]] == ["lr=0.008", "lr=0.004", "lr=0.002", "lr=0.001"]
    assert len(content["groups"][0]["diverged"]) == 1
    assert content["noise_between_seeds"]["df"] == 8
    assert content["comparisons_with_the_best"][0]["sentence"] == content["sentences"][1]
    assert content["runs"][0]["config"] == {"optimizer.lr": 0.008, "seed": 4}
    assert content["runs"][0]["at_step"] is None
    assert content["runs"][0]["reached"] is None


def test_markdown_has_the_table_and_the_conclusions(comparison: RunComparison) -> None:
    lines = as_markdown(comparison).splitlines()
    assert lines[0] == "| run | lr | seed | status | steps | tokens | @step 200 | best |"
    assert {line.count("|") for line in lines[: 2 + len(comparison.runs)]} == {9}
    assert f"- {comparison.conclusions.sentences[0]}" in lines


def test_markdown_and_csv_have_the_requested_columns(sweep: list[ComparedRun]) -> None:
    asked = compare(sweep, asked=["label", "best"])
    lines = as_markdown(asked).splitlines()
    assert lines[0] == "| label | best |"
    assert "| setting | seeds | mean ± 95% | SD | vs best | p |" in lines
    assert as_csv(asked).splitlines()[0] == "label,best val/loss"


# The text of a cell stays text: it never becomes a link, image, HTML, formula or emphasis.
ODD_TEXTS = st.text(alphabet="ab0 \t\n[]()!<>&|`*_~$\\\\#+-=.:/@'\"\x1b\ud800;", max_size=30) | st.sampled_from(
    ["[a](javascript:x)", "![a](http://a/b.png)", "<img src=x>", "https://a.b", "www.a.b", "<https://a.b>", "`a`",
     "__a__", "| a |", "a|b", "\\\\|", "&lt;b&gt;", "- a", "# a", "1. a", "> a", "```", "---", "[a]: http://b", "$a$"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(ODD_TEXTS)
def test_markdown_shows_any_text_literally(text: str) -> None:
    shown = " ".join(visible(text).split())
    render = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse
    escaped = _escape_markdown(text)
    table, item = render(f"| a | b |\n|---|---|\n| {escaped} | x |"), render(_list_item(text))
    for blocks in (table, item):
        kinds = {token.type for block in blocks for token in (block, *(block.children or ()))}
        assert not kinds & {"link_open", "image", "html_inline", "html_block", "code_inline", "em_open", "strong_open",
                            "s_open", "heading_open", "hr", "fence", "code_block", "blockquote_open"}  # fmt: skip
        texts = ["".join(child.content for child in block.children or ()) for block in blocks if block.children]
        assert texts == (["a", "b"] if blocks is table else []) + [shown] * bool(shown) + ["x"] * (blocks is table)
    assert len([block for block in table if block.type == "td_open"]) == 2
    assert len([block for block in item if block.type.endswith("list_open")]) == 1
    assert not re.search(r"(?<!\\)(://|www\.)", escaped, re.IGNORECASE)  # GitHub's Markdown makes links of these


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1+cmd|' /C calc'!A0", "'+1+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1+1", "' =1+1"),
        ("\uff1d1", "'\uff1d1"),
        ("-1", "-1"),
        ("+.5e-3", "+.5e-3"),
        (-0.5, "-0.5"),
        (-3, "-3"),
        ("a=b", "a=b"),
        (["=1"], "[=1]"),
    ],
)
def test_a_csv_cell_is_never_a_formula(tmp_path: Path, value: object, cell: str) -> None:
    write_run(tmp_path / "a", {"data.note": value, "=1+1": 2}, steps=2, eval_interval=1)
    write_run(tmp_path / "=1+1", steps=2, eval_interval=1)
    rows = list(csv.DictReader(io.StringIO(as_csv(compare(load_runs([tmp_path]), asked=["run", "note", "=1+1"])))))
    assert [row["data.note"] for row in rows if row["run"] == "a"] == [cell]
    assert {row["run"] for row in rows} == {"a", "'=1+1"}
    assert rows[0].keys() == {"run", "data.note", "'=1+1"}


@pytest.mark.slow
def test_files_are_written_even_if_nobody_reads_the_output(tmp_path: Path) -> None:
    write_sweep(tmp_path / "outputs", 4, seeds=2, steps=20, eval_interval=10)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "lmtrain", "compare", "outputs", "--csv", "a.csv", "--html", "a.html"],
        cwd=tmp_path, env=clean_environment(), stdout=write, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert done.stderr == ""
    assert (tmp_path / "a.csv").read_text().count("\n") == 5
    assert (tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_command_prints_all_sections(comparison: RunComparison, cli: Cli) -> None:
    folder = str(comparison.runs[0].path.parent)
    done = cli("compare", folder, "--reach", "3.2", "--limit", "5")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("\n13 runs, val/loss\n")
    assert "the same for all: params 1M" in done.stdout
    assert "8 more; --limit 0 shows all" in done.stdout
    assert "lr=0.008 and lr=0.004 " in comparison.conclusions.sentences[1]
    assert all(f"{sentence}\n" in done.stdout for sentence in comparison.conclusions.sentences)
    assert "first evaluation with val/loss of 3.2000 or better\n" in done.stdout
    assert "note: lr=0.008: 1 of 4 seeds diverged" in done.stdout


def test_options_change_the_output(comparison: RunComparison, capfd: pytest.CaptureFixture[str]) -> None:
    folder = str(comparison.runs[0].path.parent)

    def shown(*options: str) -> str:
        assert main(options) == 0
        return capfd.readouterr().out

    assert "not reached" in shown(folder, "--reach", "3.0", "--filter", "lr<0.003")
    assert "1 run, val/loss" in shown(f"{folder}/sweep/0")
    assert "lr=0.008 seed=1" in shown(folder, "--columns", "label,grad_clip", "--sort", "-lr")
    assert "parent" in shown(folder, "--columns", "run,from,tok/s")
    unasked, asked = shown(folder), shown(folder, "--reach", "3.2")
    assert "which at least three in four runs reach (--reach sets another value and shows each run)" in unasked
    assert unasked.count("FLOPs") == 0
    assert asked.count("FLOPs") == 1
    assert all("median step" in text for text in (unasked, asked))
    assert "best val/loss; noise" in shown(folder, "--value", "best")
    assert len(json.loads(shown(folder, "--json", "-"))["runs"]) == 13


def test_a_filter_by_the_result_marks_the_verdict(comparison: RunComparison, capfd: pytest.CaptureFixture[str]) -> None:
    """The survivors of a setting of which a run diverged are no fair sample of it."""

    def read(*options: str) -> dict[str, Any]:
        assert main([str(comparison.runs[0].path.parent), "--json", "-", *options]) == 0
        content: dict[str, Any] = json.loads(capfd.readouterr().out)
        return content

    completed = read("--filter", "status=completed")
    assert completed["sentences"][0].startswith("of runs chosen by their result: ")
    assert completed["notes"][0] == {
        "kind": "chosen by result",
        "text": "--filter 'status=completed' chooses by the result and leaves out 1 of 13 runs (lr=0.008 seed=4): a "
        "setting whose bad runs are left out looks better than it is",
        "runs": ["lr=0.008 seed=4"],
        "refuses": False,
        "mark": "of runs chosen by their result",
    }
    for condition in ("lr>=0.001", "steps>=200", "seed<4"):
        assert "chosen by result" not in [note["kind"] for note in read("--filter", condition)["notes"]]
    without = read("--filter", "at_step<9", "--filter", "seed<4")
    assert "chosen by result" not in [note["kind"] for note in without["notes"]]  # it leaves out none


def test_the_direction_of_a_metric_is_shown_and_can_be_set(
    comparison: RunComparison, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = str(comparison.runs[0].path.parent)

    def shown(*options: str) -> str:
        assert main([folder, *options]) == 0
        return capfd.readouterr().out

    assert "13 runs, val/loss\n" in shown()
    assert "13 runs, tokens_per_second (higher is better)\n" in shown("--metric", "tokens_per_second")
    assert "13 runs, tokens_per_second (lower is better)\n" in shown("--metric", "tokens_per_second", "--lower")
    assert json.loads(shown("--json", "-"))["better"] == "lower"
    higher = json.loads(shown("--json", "-", "--higher", "--value", "final"))
    assert (higher["better"], higher["value_kind"]) == ("higher", "final")
    losses = [run["final"] for run in higher["runs"] if run["status"] == "completed"]
    assert losses == sorted(losses, reverse=True)
    with pytest.raises(ConfigError, match="--lower"):
        main([folder, "--higher", "--lower"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere"], "nowhere: no such file or directory"),
        (["RUNS", "--metric", "val/los"], "--metric val/los: no run has this metric; did you mean val/loss?"),
        (
            ["RUNS", "--sort", "-optimizer.l"],
            "--sort -optimizer.l: optimizer.l: unknown key; did you mean optimizer.lr?",
        ),
        (["RUNS", "--columns", "run,sead"], "--columns run,sead: sead: unknown key; did you mean seed?"),
        (
            ["RUNS", "--at-step", "999"],
            "--at-step 999: no run has this value; --at-step 200 compares at the last step that they share",
        ),
        (["RUNS", "--filter", "lr>9"], "--filter 'lr>9': no run meets the condition"),
        (["RUNS", "--csv", "nowhere/a.csv"], "--csv nowhere/a.csv: the folder nowhere does not exist; create it first"),
        (
            ["RUNS", "--csv", "-", "--json", "-"],
            "--csv - --json -: only one of them can go to standard output; give the others a file",
        ),
        (["RUNS", "--png", "a.jpg"], "--png a.jpg: would not be a jpg file; give a.png"),
        (["RUNS", "--csv", "a.json"], "--csv a.json: would not be a json file; give --json a.json"),
        (["RUNS", "--srt", "lr"], "--srt: no such option; did you mean --sort?"),
        (["RUNS", "--difference", "0"], "--difference 0: must be above 0"),
    ],
)
def test_a_mistake_is_one_line(comparison: RunComparison, options: list[str], message: str) -> None:
    folder = str(comparison.runs[0].path.parent)
    with pytest.raises(ConfigError) as caught:
        main([folder if word == "RUNS" else word for word in options])
    assert str(caught.value) == message


def test_a_baseline_and_a_margin_are_in_the_text_and_the_json(
    comparison: RunComparison, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = str(comparison.runs[0].path.parent)
    assert main([folder, "--baseline", "lr=0.002", "--margin", "0.5"]) == 0
    shown = capfd.readouterr().out
    assert "vs baseline" in shown
    assert "better than lr=0.002: " in shown
    assert main([folder, "--baseline", "lr=0.002", "--margin", "0.5", "--json", "-"]) == 0
    content = json.loads(capfd.readouterr().out, parse_constant=pytest.fail)
    assert (content["baseline"], content["margin"], content["method"]["alpha"]) == ("lr=0.002", 0.5, 0.05)
    assert [pair["other"] for pair in content["comparisons_with_the_baseline"]] == ["lr=0.008", "lr=0.004", "lr=0.001"]
    with pytest.raises(ConfigError, match=r"--baseline 'lr=7': no setting matches"):
        main([folder, "--baseline", "lr=7"])
