"""The picture for a paper has the right size, labels, means and intervals."""

import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from scipy import stats
from support.synthetic_runs import write_run

from lmtrain.compare.comparison import compare
from lmtrain.compare.output.picture import COLUMN_INCHES, PAGE_INCHES, as_png, draw_figure, mean_curves
from lmtrain.compare.runs import ComparedRun, load_runs


def runs_of(folder: Path, rates: int, seeds: int) -> list[ComparedRun]:
    for rate in range(rates):
        for seed in range(seeds):
            changes = {"optimizer.lr": 1e-3 * (rate + 1), "seed": seed}
            loss = 3 + 0.1 * rate + 0.02 * seed
            write_run(folder / f"{rate}-{seed}", changes, final_loss=loss, eval_interval=10)
    return load_runs([folder])


def test_the_curve_is_the_mean_of_the_seeds_with_its_interval(tmp_path: Path) -> None:
    runs = runs_of(tmp_path / "runs", 2, 3)
    first, second = mean_curves(runs, "val/loss")
    values = np.stack([run.series("val/loss")[1] for run in runs[:3]])  # (seeds, points)
    low, high = stats.t.interval(0.95, 2, loc=values.mean(0), scale=stats.sem(values))
    assert first.mean - first.half == pytest.approx(low)
    assert first.mean + first.half == pytest.approx(high)
    assert [run.seed for run in second.runs] == [0, 1, 2]


def test_a_mean_ends_where_its_shortest_run_ends(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", {"seed": 1}, eval_interval=10)
    write_run(tmp_path / "runs" / "b", {"seed": 2, "trainer.max_steps": 200}, steps=120, eval_interval=10)
    (curve,) = mean_curves(load_runs([tmp_path / "runs"]), "val/loss")
    assert curve.x[-1] == 120


def test_labels_have_units_and_the_legend_has_only_settings_that_differ(tmp_path: Path) -> None:
    (axes,) = draw_figure(mean_curves(runs_of(tmp_path / "runs", 2, 2), "val/loss"), "val/loss").axes
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


def test_runs_without_the_metric_are_an_error(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "one", status=None, steps=0)
    with pytest.raises(ValueError, match="no run has val/loss yet"):
        as_png(compare(load_runs([tmp_path / "runs"])))
