"""The closing table of a sweep."""

import json
from pathlib import Path

import pytest
from support.synthetic_runs import write_run

from lmtrain.sweep.job import Job, JobEnd
from lmtrain.sweep.report import show_sweep_report, write_sweep_report


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


def test_the_jobs_of_an_earlier_command_stay_in_the_report(tmp_path: Path) -> None:
    def ended(seed: int, objective: float) -> JobEnd:
        job = Job((f"seed={seed}",), tmp_path / f"seed={seed}", f"seed={seed}")
        if not job.directory.exists():
            write_run(job.directory, {"seed": seed})
        return JobEnd(job, "completed", objective, None, {"steps": 10}, ran=True)

    write_sweep_report(tmp_path, [ended(1, 3.0), ended(2, 2.0)], None)
    write_sweep_report(tmp_path, [ended(3, 2.5), ended(1, 3.1)], None)
    jobs = json.loads((tmp_path / "sweep.json").read_text("utf-8"))["jobs"]
    assert [(job["directory"], job["objective"], job["ran"]) for job in jobs] == [
        ("seed=2", 2.0, False),
        ("seed=3", 2.5, True),
        ("seed=1", 3.1, True),
    ]
