"""Tests of `lmtrain.compare`: its objects have the numbers of the command, and show themselves."""

import html
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.synthetic_runs import write_run, write_sweep

from lmtrain import Comparison, ConfigError, compare, load_run
from lmtrain.commands import compare as command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_sweep(folder / "outputs" / "lr", 12, seeds=3)
    for name in ("[bold]<b>&", "plain"):
        write_run(folder / "odd" / name)
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture
def found() -> Comparison:
    return compare(["outputs/lr"])


def test_the_numbers_are_those_of_the_command(found: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["outputs/lr", "--json", "-"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in found.table] == [row["run"] for row in content["runs"]]
    assert [row["best"] for row in found.table] == [row["best"] for row in content["runs"]]
    assert [setting.mean for setting in found.settings] == [group["mean"] for group in content["groups"]]
    pairs = content["comparisons_with_the_best"]
    assert [verdict.p for verdict in found.verdicts] == [pair["p"] for pair in pairs]
    assert [verdict.sentence for verdict in found.verdicts] == [pair["sentence"] for pair in pairs]
    assert {verdict.reference for verdict in found.verdicts} == {found.settings[0].label}
    assert found.sentences == content["sentences"]


def test_runs_can_be_given_in_any_form(folder: Path) -> None:
    run = load_run("outputs/lr/0")
    assert [each.directory for each in compare(run).runs] == [run.directory]
    assert len(compare([run, folder / "outputs" / "lr" / "1", "outputs/lr/2"]).runs) == 3
    assert len(compare("lr").runs) == 12


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"value": "at_step"}, "value='at_step': must be one of at-step, "),
        ({"mode": "bogus"}, "mode='bogus': must be one of planned, again"),
        ({"margin": -1}, "margin=-1: must be a number above 0"),
        ({"difference": math.nan}, "difference=nan: must be a number above 0"),
    ],
)
def test_mistaken_options_are_told(option: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare("outputs/lr", **option)


def test_options_are_those_of_the_command() -> None:
    baseline = compare("outputs/lr", baseline="lr=0.001", margin=0.5, conditions=["lr<0.005"], sort="-seed")
    assert {verdict.reference for verdict in baseline.verdicts} == {"lr=0.001"}
    assert [run.config.seed for run in baseline.runs] == [3, 3, 3, 2, 2, 2, 1, 1, 1]


def test_a_table_becomes_a_frame_of_either_library(found: Comparison) -> None:
    assert list(found.frame()["best"]) == list(found.frame("polars")["best"]) == [row["best"] for row in found.table]


@pytest.mark.parametrize("runs", ["outputs", "odd"])
def test_a_terminal_shows_what_the_command_prints(
    runs: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert command.main([runs]) == 0
    expected = capsys.readouterr().out
    file = io.StringIO()
    Console(file=file, width=120).print(compare(runs))
    assert file.getvalue().split() == expected.split()


def test_a_comparison_names_the_best_setting(found: Comparison) -> None:
    assert repr(found) == "Comparison(12 runs, 'val/loss', best='lr=0.008')"


def test_a_notebook_shows_tables_sentences_and_curves_without_scripts(found: Comparison) -> None:
    shown = found._repr_html_()
    assert "<svg" in shown
    assert shown.count("<table>") >= 2
    assert html.escape(found.verdicts[0].sentence) in shown
    shown = compare("odd")._repr_html_()
    assert "<script" not in shown
    assert "<b>" not in re.sub(r"<svg.*?</svg>", "", shown, flags=re.DOTALL)
    assert "&lt;b&gt;" in shown


@pytest.mark.parametrize("kind", ["html", "png", "pdf", "svg", "json", "csv", "md"])
def test_a_comparison_is_saved_by_its_suffix(found: Comparison, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"found.{kind}"
    found.save(path)
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "html": b"<!", "json": b"{", "md": b"|", "csv": b"run", "svg": b"<?xml"}
    assert start[kind].lower() in path.read_bytes()[:2000].lower()


def test_mistakes_are_config_errors(found: Comparison, tmp_path: Path) -> None:
    for mistake in (
        lambda: compare([]),
        lambda: compare("nowhere"),
        lambda: compare("outputs/lr", metric="val/lost"),
        lambda: compare("outputs/lr", conditions=["lr>9"]),
        lambda: found.save(tmp_path / "found.xls"),
        lambda: found.frame("numpy"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError):
            mistake()


def test_the_function_stays_a_function_after_other_imports() -> None:
    import lmtrain.comparison.run_comparison

    assert callable(lmtrain.compare)
