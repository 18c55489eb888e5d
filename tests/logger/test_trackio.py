"""The real trackio, whose database is read through its own interface."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trackio")

from lmtrain.logger.base import RunInfo
from lmtrain.logger.trackio import TrackioLogger, local_environment

CONFIG = {"optimizer": {"lr": 1e-3, "betas": [0.9, 0.95]}, "resume": None}
FOLDER = "outputs/trackio"


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_token")
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9/")
    monkeypatch.chdir(tmp_path)


def logger(run_dir: Path, **settings: Any) -> TrackioLogger:
    run_dir.mkdir(parents=True, exist_ok=True)
    info = RunInfo(run_dir, id=f"id{run_dir.name}", name="lr=0.1", group="sweep-1", config=CONFIG)
    return TrackioLogger(info, **{"project": "a project", "folder": FOLDER, **settings})


def read(*names: str) -> dict[str, Any]:
    """Return the logged lines and the config of each run, read in a separate process."""
    script = f"""
import json, sys
from trackio.sqlite_storage import SQLiteStorage as storage
print(json.dumps({{name: [storage.get_logs("a project", name), storage.get_run_config("a project", name)]
                   for name in {names!r}}}, default=str))
print(sorted(run["name"] if isinstance(run, dict) else run for run in storage.get_runs("a project")), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=local_environment(os.environ) | {"TRACKIO_DIR": FOLDER},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == str(sorted(names))
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def losses(lines: Any) -> list[tuple[int, float]]:
    return [(line["step"], line["train/loss"]) for line in lines]


@pytest.mark.slow
def test_runs_and_resumes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One long test, since each process of trackio takes seconds to start. Kills are tested in test_all_loggers."""
    # Every attempt to connect is recorded in a file.
    (tmp_path / "spy").mkdir()
    (tmp_path / "spy" / "sitecustomize.py").write_text(
        f"""
import socket, sys
def audit(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        open({str(tmp_path / "connections")!r}, "a").write(f"{{arguments}}\\n")
sys.addaudithook(audit)
"""
    )
    os.environ["PYTHONPATH"] = str(tmp_path / "spy")
    try:
        start = time.process_time()  # CPU time of this process only: others may be using the CPU
        first, other = logger(tmp_path / "runs" / "a"), logger(tmp_path / "runs" / "b")
        assert time.process_time() - start < 1.0  # importing trackio takes longer
    finally:
        del os.environ["PYTHONPATH"]
    start = time.perf_counter()
    for step in range(1, 1001):
        other.log(step, {"train/loss": 1 / step})
    assert time.perf_counter() - start < 1.0
    first.rewind(0)
    for step in range(1, 8):
        first.log(step, {"train/loss": float(step), "val/loss": float("nan")})
    other.close("completed")
    first.close("interrupted")
    assert not (tmp_path / "connections").exists()
    assert (tmp_path / FOLDER).is_dir()
    assert not (tmp_path / "home").exists()

    resumed = logger(tmp_path / "runs" / "a")
    resumed.rewind(6)
    for step in (7, 8, 9):
        resumed.log(step, {"train/loss": 3.0 * step})
    resumed.close("completed")
    found = read("lr=0.1-ida", "lr=0.1-idb")
    logged, config = found["lr=0.1-ida"]
    assert losses(logged) == [(step, step * (1.0 if step < 7 else 3.0)) for step in range(1, 10)]
    assert {key: value for key, value in config.items() if not key.startswith("_")} == {
        "optimizer.lr": 1e-3, "optimizer.betas": [0.9, 0.95], "resume": None,
    }  # fmt: skip
    assert config["_Group"] == "sweep-1"
    assert losses(found["lr=0.1-idb"][0]) == [(step, 1 / step) for step in range(1, 1001)]


def test_closing_gives_up_after_the_timeout(tmp_path: Path) -> None:
    mine = logger(tmp_path / "runs" / "a", finish_timeout_s=0.5)
    mine._process.send_signal(signal.SIGSTOP)
    for step in range(1, 5001):  # more than fits into a pipe
        mine.log(step, {"train/loss": 1.0})
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"has not finished within 0.5 s"):
        mine.close("completed")
    assert time.monotonic() - start < 5.0
    assert mine._process.poll() == -signal.SIGKILL


def test_an_error_of_trackio_is_reported(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "trackio").touch()
    mine = logger(tmp_path / "runs" / "a")
    mine.rewind(0)
    mine.log(1, {"train/loss": 1.0})
    with pytest.raises(RuntimeError, match=r"^trackio failed to flush .* File exists: .*outputs/trackio"):
        mine.close("completed")
