"""The real W&B client: offline files are read back, and the online mode talks to a server on loopback."""

import contextlib
import fcntl
import json
import logging
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.wandb_file import OfflineRun, read_run
from support.wandb_server import WandbServer

from lmtrain.logger.base import RunInfo
from lmtrain.logger.wandb import GRACE_S, WandbLogger

TESTS = Path(__file__).parents[1]

CONFIG = {"seed": 1, "model": {"_target_": "lmtrain.model.Llama", "n_layer": 2, "betas": [0.9, 0.95], "bias": None}}
FLAT = {
    "seed": 1,
    "model._target_": "lmtrain.model.Llama",
    "model.n_layer": 2,
    "model.betas": [0.9, 0.95],
    "model.bias": None,
}
WANDB = str(Path(sys.executable).with_name("wandb"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hide the settings and keys of the person who runs the tests, and make a folder in which stray files show."""
    for name in os.environ:
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "runs" / "a"
    path.mkdir(parents=True)
    yield path
    ended = wait_until(lambda: not processes(path))
    kill(processes(path))
    assert ended, "W&B left a process behind"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with WandbServer() as server:
        use(server, monkeypatch)
        yield server


def use(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


def logger(run_dir: Path, **settings: Any) -> WandbLogger:
    info = RunInfo(run_dir, id=f"id{run_dir.name}", name=f"tiny-{run_dir.name}", group="sweep-1", config=CONFIG)
    return WandbLogger(info, project="a project", **{"tags": ["x", "y"], "notes": "a note", **settings})


def log_steps(logger: WandbLogger, *steps: int) -> None:
    for step in steps:
        logger.log(step, {"train/loss": 1 / step})


def offline_runs(run_dir: Path) -> list[OfflineRun]:
    return [read_run(path) for path in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))]


def history(run: Any) -> list[tuple[int, float]]:
    """Return the steps and losses of an offline run or of a run on the server."""
    return [(line["step"], line["train/loss"]) for line in run.history]


def expected(*steps: int) -> list[tuple[int, float]]:
    return [(step, 1 / step) for step in steps]


def processes(run_dir: Path, name: str = "") -> list[int]:
    """Return the ids of the W&B processes of this run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (process / "environ").read_bytes(), (process / "cmdline").read_bytes()
        except OSError:  # the process has ended, or belongs to another user
            continue
        if f"WANDB_CACHE_DIR={run_dir}\0".encode() in environment and name.encode() in command and command:
            found.append(int(process.name))
    return found


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_until(condition: Callable[[], Any], timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def has_started(logger: WandbLogger) -> bool:
    return bool(logger._client and logger._client.directory)


def closing_time(logger: WandbLogger, status: str = "completed") -> float:
    start = time.monotonic()
    logger.close(status)
    return time.monotonic() - start


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "lmtrain.logger.wandb" and record.levelno == logging.WARNING
    ]


def script(body: str, run_dir: Path, **environment: str) -> "subprocess.Popen[str]":
    """Start a process that uses `logger` and `log_steps` of this file, as a training does, but without torch."""
    source = f"""
import os, sys, time
sys.path[:0] = {[str(TESTS), str(TESTS / "logger")]!r}
from pathlib import Path
from test_wandb import log_steps, logger
run_dir = Path({str(run_dir)!r})
{body}
"""
    return subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.slow
def test_an_offline_run_writes_only_into_the_run_directory(
    run_dir: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = logger(run_dir)
    wandb.log(1, {"train/loss": 1.0, "lr": 3e-4})
    wandb.log(3, {"train/loss": 1 / 3, "val/loss": float("nan")})
    wandb.close("completed")

    (run,) = offline_runs(run_dir)
    assert (run.id, run.display_name, run.project, run.group) == ("ida", "tiny-a", "a project", "sweep-1")
    assert (run.tags, run.notes) == (["x", "y"], "a note")
    assert {key: value for key, value in run.config.items() if not key.startswith("_wandb")} == FLAT
    assert history(run) == expected(1, 3)
    assert run.history[0]["lr"] == 3e-4
    assert run.history[1]["val/loss"] != run.history[1]["val/loss"]
    assert run.step_metrics["*"] == "step"
    assert (run.summary["status"], run.summary["step"], run.exit_code) == ("completed", 3, 0)

    assert [path.name for path in run_dir.iterdir()] == ["wandb"]
    assert list(home.iterdir()) == []
    assert warnings(caplog) == []


@pytest.mark.slow
def test_texts_are_tables_beside_the_metrics(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    wandb = logger(run_dir)
    log_steps(wandb, 1)
    wandb.log_samples(1, [("To be", " or not"), ("", "狐 & <b>")])
    log_steps(wandb, 2)
    wandb.close("completed")
    (run,) = offline_runs(run_dir)
    assert [each["step"] for each in run.history] == [1, 1, 2]
    table = {key.partition("/")[2]: value for key, value in run.history[1].items() if key.startswith("samples/")}
    assert (table["_type"], table["nrows"], table["ncols"]) == ("table-file", 2, 3)
    file = next(run_dir.glob(f"wandb/*/files/{table['path']}"))
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["columns"] == ["step", "prompt", "text"]
    assert content["data"] == [[1, "To be", " or not"], [1, "", "狐 & <b>"]]
    assert warnings(caplog) == []


def test_the_disabled_mode_writes_no_run(run_dir: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    wandb = logger(run_dir, mode="disabled")
    log_steps(wandb, 1, 2)
    wandb.close("completed")
    assert list(run_dir.rglob("*.wandb")) == list(home.rglob("*.wandb")) == warnings(caplog) == []


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_the_mode_of_the_environment_wins(
    mode: str, run_dir: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with caplog.at_level(logging.INFO):
        wandb = logger(run_dir, mode=mode, links="links")
        log_steps(wandb, 1)
        wandb.close("completed")
    assert f"using WANDB_MODE=disabled instead of logger.wandb.mode={mode}" in caplog.text
    assert not [*run_dir.glob("wandb/*run*"), *home.iterdir()]


@pytest.mark.slow
def test_wandb_mode_offline_in_the_environment_keeps_an_online_run_offline(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb = logger(run_dir, mode="online")
    log_steps(wandb, 1)
    wandb.close("completed")
    assert [history(run) for run in offline_runs(run_dir)] == [expected(1)]


def test_an_online_run_arrives_completely(run_dir: Path, server: WandbServer, caplog: pytest.LogCaptureFixture) -> None:
    wandb = logger(run_dir, mode="online")
    log_steps(wandb, *range(1, 101))
    wandb.close("completed")

    run = server.runs["ida"]
    assert (run.display_name, run.project, run.group) == ("tiny-a", "a project", "sweep-1")
    assert (run.tags, run.notes) == (["x", "y"], "a note")
    assert run.plain_config == FLAT
    assert history(run) == expected(*range(1, 101))
    assert (run.summary["status"], run.summary["step"], run.exit_code) == ("completed", 100, 0)
    assert warnings(caplog) == []


@pytest.mark.slow
def test_a_resumed_online_run_loses_no_step(run_dir: Path, server: WandbServer) -> None:
    for status, steps in (("interrupted", (1, 2, 3, 4, 5)), ("completed", (4, 5, 6, 7, 8))):
        wandb = logger(run_dir, mode="online")
        log_steps(wandb, *steps)
        wandb.close(status)
    (run,) = server.runs.values()
    assert history(run) == expected(1, 2, 3, 4, 5, 4, 5, 6, 7, 8)
    # W&B would drop a line whose W&B step is not new.
    assert [line["_step"] for line in run.history] == list(range(10))
    assert (run.summary["status"], run.exit_code) == ("completed", 0)


@pytest.mark.slow
def test_a_resumed_offline_run_loses_no_step_when_it_is_synced(run_dir: Path, server: WandbServer) -> None:
    for status, steps in (("interrupted", (1, 2, 3, 4, 5)), ("completed", (4, 5, 6, 7, 8))):
        wandb = logger(run_dir)
        log_steps(wandb, *steps)
        wandb.close(status)
    assert server.operations == []
    done = subprocess.run(
        [WANDB, "sync", *(str(path) for path in sorted(run_dir.glob("wandb/offline-run-*")))],
        env=os.environ | {"WANDB_ERROR_REPORTING": "false"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (run,) = server.runs.values()
    assert (run.id, run.display_name, run.group, run.tags) == ("ida", "tiny-a", "sweep-1", ["x", "y"])
    assert run.plain_config == FLAT
    assert history(run) == expected(1, 2, 3, 4, 5, 4, 5, 6, 7, 8)
    assert [line["_step"] for line in run.history] == list(range(10))


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["refuses", "does not run", "wants a key"])
def test_a_run_whose_server_fails_is_logged_offline(
    trouble: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with WandbServer(refuse_keys=trouble == "refuses") as server:
        use(server, monkeypatch)
        if trouble == "does not run":
            server.stop()
        if trouble == "wants a key":
            monkeypatch.delenv("WANDB_API_KEY")
        wandb = logger(run_dir, mode="online", init_timeout_s=1.0 if trouble == "does not run" else 30.0)
        start = time.monotonic()
        log_steps(wandb, *range(1, 1001))
        logging_s = time.monotonic() - start
        closing_s = closing_time(wandb)
    assert logging_s < 0.5
    assert closing_s < wandb.init_timeout_s + wandb.finish_timeout_s + 3 * GRACE_S
    (run,) = offline_runs(run_dir)
    assert history(run) == expected(*range(1, 1001))
    assert run.summary["status"] == "completed"
    (warning,) = warnings(caplog)
    assert warning.endswith("the run is logged offline, and `wandb sync` uploads it later")
    reasons = {"refuses": "401", "does not run": "deadline exceeded|no answer", "wants a key": "No API key"}
    assert re.search(reasons[trouble], warning)


@pytest.mark.slow
def test_a_server_that_stops_during_the_run_loses_nothing(
    run_dir: Path, server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = logger(run_dir, mode="online", finish_timeout_s=1.0)
    log_steps(wandb, 1)
    assert wait_until(lambda: "ida" in server.runs and list(run_dir.glob("wandb/run-*/*.wandb")))
    server.stop()
    start = time.monotonic()
    log_steps(wandb, *range(2, 1001))
    assert time.monotonic() - start < 0.5
    assert closing_time(wandb) < wandb.finish_timeout_s + 3 * GRACE_S
    (directory,) = run_dir.glob("wandb/run-*")
    reason, advice = warnings(caplog)
    assert reason == "W&B: Timed out finishing run; it gets no more metrics, but metrics.jsonl has everything"
    assert advice == f"to upload what W&B has: wandb sync {directory}"
    (file,) = directory.glob("*.wandb")
    assert history(read_run(file)) == expected(*range(1, 1001))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb_process", "wandb-core"])
def test_a_crash_of_wandb_is_a_warning(name: str, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    wandb = logger(run_dir)
    log_steps(wandb, 1)
    assert wait_until(lambda: has_started(wandb))
    kill(processes(run_dir, name))
    log_steps(wandb, *range(2, 1001))
    assert closing_time(wandb) < 3 * GRACE_S
    (warning,) = warnings(caplog)
    assert warning.endswith("it gets no more metrics, but metrics.jsonl has everything")


@pytest.mark.slow
def test_a_wandb_that_hangs_is_killed(
    run_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmtrain.logger.wandb.GRACE_S", 0.5)
    wandb = logger(run_dir, init_timeout_s=0.5, finish_timeout_s=0.5)
    assert wait_until(lambda: has_started(wandb))
    stopped = processes(run_dir)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    log_steps(wandb, *range(1, 10_001))  # more than fits into a pipe
    assert closing_time(wandb) < 10
    (warning,) = warnings(caplog)
    assert warning.endswith("it gets no more metrics, but metrics.jsonl has everything")
    assert processes(run_dir, "wandb_process") == []
    kill(processes(run_dir))  # wandb-core, which would end by itself if it were not suspended


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["hangs", "stops"])
def test_the_process_exits_right_after_closing(trouble: str, run_dir: Path) -> None:
    with WandbServer(hang=trouble == "hangs") as server:
        process = script(
            f"""
wandb = logger(run_dir, mode="online", init_timeout_s={1.0 if trouble == "hangs" else 30.0}, finish_timeout_s=1.0)
log_steps(wandb, 1)
while not (run_dir / "go").exists():
    time.sleep(0.02)
log_steps(wandb, 2)
wandb.close("completed")
print(time.monotonic())
""",
            run_dir,
            **server.environment,
        )
        if trouble == "stops":
            assert wait_until(lambda: "ida" in server.runs and list(run_dir.glob("wandb/run-*/*.wandb")))
            server.stop()
        (run_dir / "go").touch()
        output, errors = process.communicate(timeout=60)
        exited = time.monotonic()
    assert process.returncode == 0
    assert exited - float(output) < 2.0
    assert re.search({"hangs": "deadline exceeded|no answer", "stops": "Timed out finishing run"}[trouble], errors)
    file = sorted(run_dir.glob("wandb/*run-*/*.wandb"))[0]
    assert file.parent.name.startswith("offline-") == (trouble == "hangs")
    assert history(read_run(file)) == expected(1, 2)


@pytest.mark.slow
def test_a_killed_run_keeps_what_was_logged(run_dir: Path) -> None:
    process = script(
        """
wandb = logger(run_dir)
log_steps(wandb, 1, 2, 3, 4)
while not wandb._queue.empty():
    time.sleep(0.02)
print("W&B has all steps but the last", flush=True)
time.sleep(60)
""",
        run_dir,
    )
    assert process.stdout
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert wait_until(lambda: not processes(run_dir))
    (run,) = offline_runs(run_dir)
    assert history(run)[:3] == expected(1, 2, 3)
    assert (run.summary["status"], run.exit_code) == ("killed", 1)


@pytest.mark.slow
def test_wandb_ignores_signals_that_are_meant_for_the_run(run_dir: Path) -> None:
    wandb = logger(run_dir)
    log_steps(wandb, 1)
    assert wait_until(lambda: has_started(wandb))
    (pid,) = processes(run_dir, "wandb_process")
    assert os.getsid(pid) != os.getsid(0)  # a terminal's signals do not reach it
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGUSR1)
    log_steps(wandb, 2)
    wandb.close("interrupted")
    (run,) = offline_runs(run_dir)
    assert history(run) == expected(1, 2)
    assert (run.summary["status"], run.exit_code) == ("interrupted", 1)


@pytest.mark.slow
def test_runs_in_one_process_stay_separate_even_if_one_is_not_closed(tmp_path: Path, run_dir: Path) -> None:
    other_dir = tmp_path / "runs" / "b"
    other_dir.mkdir()
    unfinished, wandb = logger(run_dir), logger(other_dir)
    log_steps(unfinished, 1, 2)
    log_steps(wandb, 3, 4)
    wandb.close("completed")
    (run,) = offline_runs(other_dir)
    assert (run.id, run.display_name, history(run)) == ("idb", "tiny-b", expected(3, 4))
    unfinished.close("failed")
    (run,) = offline_runs(run_dir)
    assert (run.id, run.display_name, history(run)) == ("ida", "tiny-a", expected(1, 2))


@pytest.mark.slow
def test_construction_and_logging_take_no_time(run_dir: Path) -> None:
    loggers, constructing_s, logging_s = [], [], []
    for _ in range(3):  # the fastest counts, since something else may be using the CPU
        start = time.perf_counter()
        loggers.append(logger(run_dir, mode="disabled"))
        constructing_s.append(time.perf_counter() - start)
    for wandb in loggers:
        start = time.perf_counter()
        log_steps(wandb, *range(1, 1001))
        logging_s.append(time.perf_counter() - start)
    for wandb in loggers:
        wandb.close("completed")
    assert min(constructing_s) < 0.05
    assert min(logging_s) < 0.05


@pytest.mark.slow
def test_the_training_process_is_not_affected(run_dir: Path) -> None:
    process = script(
        """
import json, signal, threading

def state():
    return {
        "signals": [str(signal.getsignal(number)) for number in signal.valid_signals()],
        "streams": [id(sys.stdout), id(sys.stderr), str(sys.stdout.write), str(sys.stderr.write)],
        "hooks": [str(sys.excepthook), str(sys.exit), str(threading.excepthook), str(sys.meta_path)],
        "environment": dict(os.environ),
        "client": "wandb" in sys.modules,
    }

before = state()
wandb = logger(run_dir)
log_steps(wandb, 1, 2)
while not wandb._client or not wandb._client.directory:
    time.sleep(0.02)
during = state()
wandb.close("completed")
print(json.dumps([before, during, state(), time.monotonic()]))
""",
        run_dir,
    )
    output, errors = process.communicate(timeout=60)
    before, during, after, closed = json.loads(output)
    assert time.monotonic() - closed < 2.0
    assert before == during == after
    assert not after["client"]
    assert errors == ""
    assert history(offline_runs(run_dir)[0]) == expected(1, 2)


@pytest.mark.slow
def test_the_logged_command_uploads_an_offline_run_with_its_tags(
    run_dir: Path, caplog: pytest.LogCaptureFixture, server: WandbServer
) -> None:
    caplog.set_level(logging.INFO, "lmtrain")
    info = RunInfo(run_dir, id="ida", name="a", group="b", config={}, tags=["smoke", "x", "y" * 70])
    wandb = WandbLogger(info, project="p", tags=["x"])
    log_steps(wandb, 1)
    wandb.close("completed")
    (message,) = [text for text in caplog.messages if "wandb sync" in text]
    command = message.removeprefix("to upload it to W&B: ").replace("wandb", WANDB, 1)
    environment = os.environ | {"WANDB_ERROR_REPORTING": "false"}
    assert subprocess.run(command, shell=True, env=environment, capture_output=True, timeout=60).returncode == 0
    assert history(server.runs["ida"]) == expected(1)
    assert server.runs["ida"].tags == ["x", "smoke", "y" * 64]


@pytest.mark.slow
def test_leet_shows_the_runs_by_their_links(run_dir: Path, home: Path) -> None:
    (home / "outputs" / "wandb").mkdir(parents=True)
    (home / "outputs" / "wandb" / "offline-run-20261122_000000-gone").symlink_to("../gone")
    wandb = logger(run_dir, links="outputs/wandb")
    log_steps(wandb, *range(1, 10))
    wandb.close("completed")
    (link,) = [path for path in (home / "outputs" / "wandb").iterdir() if path.exists()]
    assert link.resolve() == next(run_dir.glob("wandb/offline-run-*"))
    assert not Path(os.readlink(link)).is_absolute()
    screen = shown_by_leet(home / "outputs" / "wandb", until=b"train/loss")
    assert b"tiny-a" in screen
    assert link.name[:20].encode() in screen


def shown_by_leet(folder: Path, until: bytes) -> bytes:
    """Return the output of the viewer to its terminal, once it contains a text."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    command, environment = (
        [WANDB, "leet", str(folder)],
        os.environ | {"TERM": "xterm", "WANDB_ERROR_REPORTING": "false"},
    )
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    screen, deadline = b"", time.monotonic() + 60
    while until not in screen and time.monotonic() < deadline:
        if select.select([ours], [], [], 0.5)[0]:
            screen += os.read(ours, 65536)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    os.close(ours)
    return screen


def test_a_folder_for_links_that_is_not_writable_is_no_error(
    run_dir: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "outputs").symlink_to("/proc/self")
    wandb = logger(run_dir, links="outputs/wandb")
    log_steps(wandb, 1)
    wandb.close("completed")
    assert history(offline_runs(run_dir)[0]) == expected(1)
    assert warnings(caplog) == []
