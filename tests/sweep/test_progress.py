"""A running sweep shows its progress."""

import json
from pathlib import Path

from lmtrain.files.metrics import TAIL_BYTES
from lmtrain.sweep.progress import Progress, read_progress


def test_progress_is_read_from_the_end_of_the_metrics(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert read_progress(metrics) == Progress()  # not begun
    metrics.write_text("")
    assert read_progress(metrics) == Progress()
    lines = [{"step": step, "train/loss": 1 / step, "seconds": 2.0 * step} for step in range(1, 2001)]
    lines[1989]["val/loss"] = 0.5
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    assert len(text) > 4 * TAIL_BYTES
    metrics.write_text(text + '{"step": 2001, "train/l')  # being written
    progress = read_progress(metrics)
    assert progress == Progress(2000, 1 / 2000, 0.5, 4000.0)
    assert progress.seconds_left(2500) == 1000.0
    metrics.write_text('{"step": 1, "train/loss": null, "seconds": 0.0}\n')
    assert read_progress(metrics) == Progress(1, None, None, 0.0)
