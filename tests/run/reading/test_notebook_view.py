"""Tests of what a notebook shows of a run."""

import json
from pathlib import Path

import pytest
from support.synthetic_runs import write_run

from lmtrain import load_run
from lmtrain.run.reading import notebook_view


def test_a_run_shows_its_facts_and_its_curves(tmp_path: Path) -> None:
    shown = load_run(write_run(tmp_path / "run", final_loss=2.75))._repr_html_()
    assert ">completed<" in shown
    assert ">2.7500<" in shown
    assert shown.count("<svg") == 1
    assert "<script" not in shown


def test_text_of_a_run_is_escaped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "<b>run", status="failed")
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    (run / "result.json").write_text(json.dumps(result | {"error": "<script>x</script>"}), encoding="utf-8")
    shown = load_run(run)._repr_html_()
    assert "<script" not in shown
    assert "&lt;b&gt;run" in shown


def test_numbers_too_large_for_a_float_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    (run / "result.json").write_text(json.dumps(result | {"tokens": 10**400, "steps": 7}), encoding="utf-8")
    shown = load_run(run)._repr_html_()
    assert ">7<" in shown
    assert ">tokens<" not in shown


def test_a_run_that_has_just_begun_has_no_curves(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", status=None, steps=0)
    shown = load_run(run)._repr_html_()
    assert ">unfinished<" in shown
    assert ">0 steps<" in shown
    assert "<svg" not in shown


def test_without_matplotlib_there_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook_view, "is_installed", lambda name: False)
    assert "<svg" not in load_run(write_run(tmp_path / "run"))._repr_html_()
