"""The closing table of a sweep."""

from pathlib import Path

import pytest

from lmtrain.sweep.job import Job, JobEnd
from lmtrain.sweep.report import show_sweep_report


def test_the_table_fits_a_hundred_columns_and_shows_whole_titles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    title = "optimizer.lr=0.001 optimizer.weight_decay=0.125 data.path=[/x]:smile: scheduler.warmup_steps=100 seed=1"
    job = Job(tuple(title.split()), tmp_path / "a-long-name-of-a-directory" / ("x" * 120), title)
    result = {"best_step": 100_000, "final_train_loss": 3.25, "tokens": 1e9, "seconds": 1e5}
    show_sweep_report(tmp_path, [JobEnd(job, "completed", 3.125, None, result, ran=False)], None)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("┏", "┃", "│", "└"))]
    assert max(map(len, table)) <= 100
    cells = [line.split("│")[1] for line in table if line.startswith("│")]
    assert "".join(cells).replace(" ", "") == title.replace(" ", "")
    assert "completed earlier" in "".join(table)
