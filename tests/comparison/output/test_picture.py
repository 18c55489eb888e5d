"""The picture for a paper has the right size, labels, means and intervals."""

import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from scipy import stats
from support.synthetic_runs import write_run

from lmtrain.comparison.output.picture import COLUMN_INCHES, PAGE_INCHES, as_png, draw_figure, mean_curves
from lmtrain.comparison.run_comparison import compare
from lmtrain.comparison.runs import ComparedRun, load_runs


def runs_of(folder: Path, rates: int, seeds: int) -> list[ComparedRun]:
    for rate in range(rates):
        for seed in range(seeds):
            changes = {"optimizer.lr": 1e-3 * (rate + 1), "seed": seed}
            loss = 3 + 0.1 * rate + 0.02 * seed
            write_run(folder / f"{rate}-{seed}", changes, final_loss=loss, eval_interval=10)
    return load_runs([folder])


def test_the_curve_is_the_mean_of_the_seeds_with_its_interval(tmp_path: Path) -> None:
    runs = runs_of(tmp_path / "runs", 2, 3)
    first, second = mean_curves(compare(runs))
    values = np.stack([run.series("val/loss")[1] for run in runs[:3]])  # (seeds, points)
    low, high = stats.t.interval(0.95, 2, loc=values.mean(0), scale=stats.sem(values))
    assert first.mean - first.half == pytest.approx(low)
    assert first.mean + first.half == pytest.approx(high)
    assert second.units == pytest.approx(np.stack([run.series("val/loss")[1] for run in runs[3:]]))
    assert (first.label, second.label) == ("lr=0.001", "lr=0.002")


def test_a_mean_ends_where_its_shortest_run_ends(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", {"seed": 1}, eval_interval=10)
    write_run(tmp_path / "runs" / "b", {"seed": 2, "trainer.max_steps": 200}, steps=120, eval_interval=10)
    (curve,) = mean_curves(compare(load_runs([tmp_path / "runs"])))
    assert curve.x[-1] == 120


def test_labels_have_units_and_the_legend_has_only_settings_that_differ(tmp_path: Path) -> None:
    (axes,) = draw_figure(mean_curves(compare(runs_of(tmp_path / "runs", 2, 2))), "val/loss").axes
    assert axes.get_xlabel() == "optimizer steps"
    assert axes.get_ylabel() == "validation loss (nats/token)"
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_title().get_text() == "lr"
    assert [text.get_text() for text in legend.get_texts()] == ["0.001", "0.002"]


@pytest.mark.parametrize(("rates", "inches"), [(2, COLUMN_INCHES), (7, PAGE_INCHES)])
def test_the_picture_is_a_column_or_a_page_wide_at_300_dots_per_inch(rates: int, inches: float, tmp_path: Path) -> None:
    png = as_png(compare(runs_of(tmp_path / "runs", rates, 1)))
    assert matplotlib.image.imread(io.BytesIO(png)).shape[1] == pytest.approx(300 * inches, abs=1)


def test_only_runs_that_count_in_the_verdict_are_averaged(tmp_path: Path) -> None:
    for seed, loss in ((1, 3.0), (2, 3.2), (3, 3.4)):
        write_run(tmp_path / f"{seed}", {"seed": seed}, final_loss=loss, eval_interval=100)
    write_run(tmp_path / "again", {"seed": 3, "name": "again"}, final_loss=3.4, eval_interval=100)
    write_run(tmp_path / "diverged", {"seed": 4}, final_loss=99.0, eval_interval=100, status="diverged")
    write_run(tmp_path / "pruned", {"seed": 5, "trainer.max_steps": 200}, steps=100, eval_interval=100, status="pruned")
    comparison = compare(load_runs([tmp_path]))
    (curve,) = mean_curves(comparison)
    (group,) = comparison.conclusions.groups
    assert curve.mean[-1] == pytest.approx(group.mean) == pytest.approx(3.2)
    assert len(curve.units) == 3
    assert curve.missing == 2


def test_the_legend_says_which_means_are_not_over_all_seeds(tmp_path: Path) -> None:
    runs_of(tmp_path / "runs", 2, 3)
    write_run(tmp_path / "runs" / "lost", {"optimizer.lr": 2e-3, "seed": 3}, eval_interval=10, status="diverged")
    (axes,) = draw_figure(mean_curves(compare(load_runs([tmp_path / "runs"]))), "val/loss").axes
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["0.001", "0.002 (3 of 4 seeds)"]


def test_forks_of_one_run_are_one_unit_of_a_curve(tmp_path: Path) -> None:
    parent = write_run(tmp_path / "parent", {"seed": 1}, eval_interval=10)
    origin = {"forked_from": {"run": str(parent), "run_id": "parent", "step": 100}}
    for seed in range(3):
        changes = {"seed": seed, "fork": str(parent), "step": 100}
        write_run(tmp_path / f"f{seed}", changes, first_step=100, eval_interval=10, environment=origin)
    curves = mean_curves(compare(load_runs([tmp_path])))
    assert sorted((curve.label, len(curve.units)) for curve in curves) == [("all runs", 1), ("forked at step 100", 1)]


def test_two_seeds_are_drawn_and_three_have_an_interval(tmp_path: Path) -> None:
    for seeds in (2, 3):
        (axes,) = draw_figure(mean_curves(compare(runs_of(tmp_path / str(seeds), 2, seeds))), "val/loss").axes
        assert len(axes.lines) == (2 * (1 + 2) if seeds == 2 else 2)
        assert len(axes.collections) == (0 if seeds == 2 else 2)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_settings_with_one_evaluation_are_drawn_side_by_side(seeds: int, tmp_path: Path) -> None:
    for rate in range(3):
        for seed in range(seeds):
            changes = {"optimizer.lr": 1e-3 * (rate + 1), "seed": seed}
            loss = 3 + 0.1 * rate + 0.02 * seed
            write_run(tmp_path / f"{rate}-{seed}", changes, final_loss=loss, eval_interval=200)
    (axes,) = draw_figure(mean_curves(compare(load_runs([tmp_path]))), "val/loss").axes
    assert axes.get_xlabel() == "lr (optimizer steps: 200)"
    means = [bar.lines[0].get_xydata()[0].tolist() for bar in axes.containers]
    assert means == [pytest.approx([rate, 3 + 0.1 * rate + 0.01 * (seeds - 1)]) for rate in range(3)]
    assert sum(bar.has_yerr for bar in axes.containers) == (3 if seeds == 3 else 0)


def test_runs_without_the_metric_are_an_error(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "one", status=None, steps=0)
    with pytest.raises(ValueError, match="no run has val/loss yet"):
        as_png(compare(load_runs([tmp_path / "runs"])))
