"""A comparison says what the best setting saves, read from the curves of its runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.synthetic_runs import write_run

from lmtrain.comparison.output.text_files import as_json, as_markdown
from lmtrain.comparison.run_comparison import compare
from lmtrain.comparison.runs import load_runs
from lmtrain.comparison.worth_of_settings import worth_in_words, worth_of_settings

LOSSES = {1e-3: 3.0, 3e-3: 3.04}
# The curves of the synthetic runs are final · (step / steps) ** -0.1.
TRUE_SAVING = 1 - (3.04 / 3.0) ** -10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for seed in range(1, 6):
        for lr, loss in LOSSES.items():
            final = loss + 0.005 * float(generator.standard_normal())
            write_run(tmp_path / f"{lr}-{seed}", {"optimizer.lr": lr, "seed": seed}, final_loss=final, steps=1000)
    return tmp_path


def test_the_saving_is_that_of_the_curves(folder: Path) -> None:
    comparison = compare(load_runs([folder]))
    (worth,) = worth_of_settings(comparison)
    assert worth.decided
    assert worth.savings.keys() == {"step", "tokens", "flops", "seconds"}
    for saving in worth.savings.values():
        assert saving.low < TRUE_SAVING < saving.high
        assert saving.value == pytest.approx(TRUE_SAVING, abs=0.03)
    sentence, meaning = worth_in_words(comparison)
    assert sentence.startswith("lr=0.001 saves 1")
    assert sentence.endswith("of the steps, tokens, FLOPs and time of lr=0.003")
    assert "curve" in meaning
    assert sentence in as_markdown(comparison)
    (written,) = json.loads(as_json(comparison))["savings"]
    assert written["worse"] == "lr=0.003"
    assert written["step"]["value"] == worth.savings["step"].value


@pytest.mark.parametrize("value", ["at-tokens", "at-flops", "final"])
def test_other_values_have_a_saving(folder: Path, value: str) -> None:
    (worth,) = worth_of_settings(compare(load_runs([folder]), value=value))
    assert worth.savings["step"].value == pytest.approx(TRUE_SAVING, abs=0.03)


def test_an_earlier_step_is_read_from_the_curve_up_to_it(folder: Path) -> None:
    (worth,) = worth_of_settings(compare(load_runs([folder]), at_step=500))
    assert worth.savings["step"].value == pytest.approx(TRUE_SAVING, abs=0.03)


def test_the_best_values_have_no_saving(folder: Path) -> None:
    assert worth_of_settings(compare(load_runs([folder]), value="best")) == []


def test_time_on_another_machine_is_left_out(folder: Path) -> None:
    file = folder / "0.003-1" / "environment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"host": "there"}))
    (worth,) = worth_of_settings(compare(load_runs([folder])))
    assert worth.savings.keys() == {"step", "tokens", "flops"}


@pytest.mark.parametrize("baseline", ["lr=0.001", "lr=0.003"])
def test_with_a_baseline_the_better_of_both_saves(folder: Path, baseline: str) -> None:
    (worth,) = worth_of_settings(compare(load_runs([folder]), baseline=baseline))
    (usual,) = worth_of_settings(compare(load_runs([folder])))
    assert worth.decided
    assert worth.sentence == usual.sentence


def test_no_saving_is_said_without_a_verdict(tmp_path: Path) -> None:
    for seed in range(1, 4):
        for lr, loss in ((1e-3, 3.0), (2e-3, 3.001)):
            write_run(tmp_path / f"{lr}-{seed}", {"optimizer.lr": lr, "seed": seed}, final_loss=loss + 0.1 * (seed % 2))
    write_run(tmp_path / "single", {"optimizer.lr": 5e-3, "seed": 1}, final_loss=3.05)
    comparison = compare(load_runs([tmp_path]))
    assert worth_in_words(comparison) == []
    assert not any(worth.decided for worth in worth_of_settings(comparison))
