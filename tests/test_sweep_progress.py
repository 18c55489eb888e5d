"""What a sweep shows while it goes on."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, clean_environment

from lmtrain.sweep_progress import TAIL_BYTES, Progress, read_progress


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


@pytest.mark.slow
def test_a_terminal_shows_all_jobs_as_they_go(token_folder: Path, tmp_path: Path) -> None:
    terminal, its_end = pty.openpty()
    command = ["-m", *TINY, f"data.path={token_folder}", "trainer.max_steps=150", "seed=1,2", "hydra.sweep.dir=sweep"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lmtrain", *command],
        cwd=tmp_path,
        env=clean_environment() | {"TERM": "xterm", "COLUMNS": "120", "LINES": "30"},
        stdin=its_end,
        stdout=its_end,
        stderr=its_end,
    )
    os.close(its_end)
    shown = b""
    try:
        while part := os.read(terminal, 65536):
            shown += part
    except OSError:  # a terminal's way to say that nobody writes any more
        pass
    assert process.wait(timeout=60) == 0, shown.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"seed=1 +│ running +│ +\d+/150 │ +\d\.\d{4} │ +\d\.\d{4} │ +\d+s", text), text
    assert "1 running, 1 waiting" in text
    assert "1 running, 1 completed" in text
    assert "2 jobs: 2 completed; everything is in sweep" in text
