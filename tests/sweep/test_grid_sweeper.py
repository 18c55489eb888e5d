"""Whole sweeps run as real processes, also with failures, signals and kills."""

import json
import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Cli, clean_environment
from support.tokens import TINY, write_failing_model, write_tiny_experiment

from lmtrain.checkpoint.files import load_checkpoint
from lmtrain.sweep.job_directory import directory_name
from lmtrain.verify.bit_comparison import UndisturbedRun

# For a thorough test: SWEEP_JOBS=20 SWEEP_KILLS=10 pytest tests/sweep/test_grid_sweeper.py -k killed
JOBS, KILLS = (int(os.environ.get(name, least)) for name, least in (("SWEEP_JOBS", "2"), ("SWEEP_KILLS", "2")))


@pytest.fixture
def tiny(token_folder: Path, tmp_path: Path) -> list[str]:
    write_tiny_experiment(tmp_path, token_folder)
    return ["-m", "experiments=tiny", "hydra.sweep.dir=sweep"]


def result(run: Path) -> Any:
    return json.loads((run / "result.json").read_text())


def statuses(folder: Path) -> dict[str, str]:
    """Return the status of each job, by directory, from `sweep.json`."""
    jobs = json.loads((folder / "sweep" / "sweep.json").read_text())["jobs"]
    return {job["directory"]: job["status"] for job in jobs}


def ran(folder: Path) -> set[str]:
    jobs = json.loads((folder / "sweep" / "sweep.json").read_text())["jobs"]
    return {job["directory"] for job in jobs if job["ran"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["experiments=search", "hydra/sweeper=grid"],
            "for a search that tries every combination, use hydra/sweeper/sampler=grid",
        ),
        (["optimizer.lr=interval(0, 1)"], "optimizer.lr=interval(0, 1): a sweep needs single values"),
        (["seed=1,2", "hydra.sweeper.max_batch_size=0"], "hydra.sweeper.max_batch_size=0: give a whole number"),
        (["experiments=search", "retry_failed=true"], "retry_failed=true: a search does not repeat failed trials"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    tmp_path: Path, cli: Cli, arguments: list[str], message: str
) -> None:
    done = cli("-m", *arguments, "hydra.sweep.dir=sweep")
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "sweep").exists()


BROKEN = """
from hydra.plugins.launcher import Launcher

class Broken(Launcher):
    def __init__(self, **settings):
        pass

    def setup(self, **settings):
        pass

    def launch(self, job_overrides, initial_job_idx):
        raise OSError("the cluster is gone")
"""


@pytest.mark.slow
@pytest.mark.parametrize("sweeper", ["grid", "optuna"])
def test_a_failing_launcher_is_reported_in_one_line(tmp_path: Path, token_folder: Path, cli: Cli, sweeper: str) -> None:
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "broken.py").write_text(BROKEN)
    (tmp_path / "conf" / "hydra" / "launcher").mkdir(parents=True)
    node = "_target_: hydra_plugins.broken.Broken\n"
    (tmp_path / "conf" / "hydra" / "launcher" / "broken.yaml").write_text(node)
    shared = [*TINY, f"data.path={token_folder}"]
    if sweeper == "optuna":
        pytest.importorskip("optuna")
    else:  # one run has begun and was killed
        run = tmp_path / "sweep" / directory_name([*shared, "seed=1"])
        assert cli(*shared, "seed=1", f"hydra.run.dir='{run}'").returncode == 0
        (run / "result.json").unlink()
    swept = ["seed=1,2", "hydra/launcher=broken", f"hydra/sweeper={sweeper}", "hydra.sweep.dir=sweep"]
    # Hydra discovers plugins once per process, so this needs a new interpreter with this folder on its path.
    done = cli("-m", *shared, *swept, PYTHONPATH="")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "OSError: the cluster is gone" in done.stdout
    assert "to continue: python -m lmtrain -m " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    if sweeper == "grid":
        jobs = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]
        assert [job["status"] for job in jobs] == ["interrupted", "not started"]
        assert {job["reason"] for job in jobs} == {"OSError: the cluster is gone"}
        assert "seed=1: interrupted: OSError: the cluster is gone (sweep/" in done.stdout


@pytest.mark.slow
def test_a_failed_job_affects_no_other_and_is_retried_on_request_under_every_launcher(
    tiny: list[str], tmp_path: Path, cli: Cli
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    error, condition = "MemoryError('no memory for 12 GB')", "Path('broken').exists()"
    write_failing_model(tmp_path, error, calls=15, condition=condition)
    (tmp_path / "broken").touch()
    # The experiment's model settings would be unknown keys of the failing model.
    experiment = tmp_path / "experiments" / "tiny.yaml"
    lines = experiment.read_text().splitlines()
    keys = ("  n_", "  d_", "model:")
    experiment.write_text("\n".join(line for line in lines if not line.startswith(keys)))

    one_by_one = [*tiny, "model=fails", "name='swept (1)'"]
    two = [*one_by_one, "hydra.launcher.n_jobs=2"]
    done = cli(*two, "optimizer.lr=1e-3,1e9", WANDB_SWEEP_ID="agents", WANDB_RUN_ID="agents")
    assert done.returncode == 1, done.stdout + done.stderr
    failed, diverged = (f"lr={lr},experiments=tiny,model=fails" for lr in ("0.001", "1000000000.0"))
    assert statuses(tmp_path) == {failed: "failed", diverged: "diverged"}
    ids = {json.loads(path.read_text())["run_id"] for path in tmp_path.glob("sweep/*/environment.json")}
    assert len(ids - {"agents"}) == 2  # WANDB_RUN_ID is meant for a single run, so the jobs ignore it
    closing = done.stdout[done.stdout.index("┏") :]
    assert "optimizer.lr=0.001: failed: MemoryError: no memory for 12 GB (sweep/" in closing
    assert "optimizer.lr=1000000000.0: diverged: DivergedError: " in closing
    assert "2 jobs: 1 failed, 1 diverged; everything is in sweep" in closing
    assert re.search(r"to continue: python -m lmtrain .* hydra\.sweep\.dir=sweep retry_failed=true\n", closing)
    assert "Traceback" not in done.stdout + done.stderr
    assert "MemoryError: no memory for 12 GB" in (tmp_path / "sweep" / failed / "job.log").read_text()

    (tmp_path / "broken").unlink()
    # The sweep is extended and reordered, and another launcher finds the results of the first. joblib's workers do not
    # survive a fork, so this needs a new interpreter.
    joblib = "hydra/launcher=joblib"
    done = cli(*one_by_one, "optimizer.lr=1e-2,1e9,1e-3", joblib, PYTHONPATH="", timeout=240)
    assert done.returncode == 1, done.stdout + done.stderr
    good = "lr=0.01,experiments=tiny,model=fails"
    assert ran(tmp_path) == {good}
    assert (tmp_path / "sweep" / good / "job.log").stat().st_size
    assert statuses(tmp_path) == {good: "completed", failed: "failed", diverged: "diverged"}
    submitit = "hydra/launcher=submitit_local"
    done = cli(*one_by_one, "optimizer.lr=1e-2,1e-3", "retry_failed=true", submitit, PYTHONPATH="", timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ran(tmp_path) == {failed}
    assert "resumed after step" in (tmp_path / "sweep" / failed / "job.log").read_text()
    closing = done.stdout[done.stdout.index("┏") :]
    best_first = sorted((good, failed), key=lambda name: result(tmp_path / "sweep" / name)["objective"])
    assert [f"lr={lr}" for lr in re.findall(r"│ optimizer\.lr=(\S+)", closing)] == [
        name.partition(",")[0] for name in best_first
    ]
    assert "2 jobs: 1 completed earlier, 1 completed; everything is in sweep" in closing

    # A mistake under another launcher, and a directory that belongs to another sweep.
    refused = cli(*one_by_one, "seed=1,2", "trainer.max_stepz=3", joblib, "hydra.sweep.dir=elsewhere")
    assert refused.returncode == 2
    assert "did you mean trainer.max_steps?" in refused.stderr
    assert not (tmp_path / "elsewhere").exists()
    done = cli(*one_by_one, "optimizer.lr=1e-2", "seed=5", f"hydra.sweep.subdir='{good}'")
    assert done.returncode == 1
    assert "has a run with another config (seed: 1 → 5)" in done.stdout
    assert "retry_failed" not in done.stdout  # a retry would not help
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_ray_runs_the_same_jobs(tiny: list[str], tmp_path: Path, cli: Cli) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="needs the extra ray")
    done = cli(*tiny, "seed=1,2", "hydra/launcher=ray", timeout=300, PYTHONPATH="")  # Ray does not survive a fork
    assert done.returncode == 0, done.stdout + done.stderr
    assert {*statuses(tmp_path).values()} == {"completed"}


@pytest.mark.slow
def test_a_terminal_shows_all_jobs_and_after_a_signal_the_same_command_continues(
    tiny: list[str], tmp_path: Path, cli: Cli
) -> None:
    long = [*tiny, "trainer.max_steps=600", "trainer.eval_interval=100", "trainer.checkpoint_interval=200"]
    command = [*long, "seed=1,2,3", "hydra.launcher.n_jobs=2"]
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "lmtrain", *command],
        cwd=tmp_path,
        env=clean_environment() | {"TERM": "xterm", "COLUMNS": "120", "LINES": "30"},
        stdin=its_end,
        stdout=its_end,
        stderr=its_end,
    )
    os.close(its_end)
    rows = [rf"seed={seed} +│ running +│ +\d+/600 │ +\d\.\d{{4}} │ +[\d.–]+ │ +\d+s" for seed in (1, 2)]
    written, asked = b"", False
    try:
        while select.select([terminal], [], [], 90)[0] and (part := os.read(terminal, 65536)):
            written += part
            shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode(errors="replace"))
            if not asked and all(re.search(row, shown) for row in rows):
                process.send_signal(signal.SIGINT)
                asked = True
    except OSError:  # a pseudo-terminal raises it when its other end is closed
        pass
    finally:
        if not asked:
            process.kill()
        os.close(terminal)
    assert process.wait(timeout=60) == 130, shown
    assert "2 running, 1 waiting" in shown
    assert "3 jobs: 2 interrupted, 1 not started; everything is in sweep" in shown
    assert sorted(statuses(tmp_path).values()) == ["interrupted", "interrupted", "not started"], shown
    steps = [result(path.parent)["steps"] for path in (tmp_path / "sweep").glob("*/metrics.jsonl")]
    assert all(0 < step < 600 for step in steps)
    # Two processes of the same sweep at the same time share the work.
    started = [cli.start(*long, "seed=1,2") for _ in range(2)]
    for again in started:
        assert again.wait(timeout=180) == 0, again.stdout
    assert len((tmp_path / "sweep" / "design.jsonl").read_text().splitlines()) == 1
    logs = [path.read_text() for path in sorted((tmp_path / "sweep").glob("*/job.log"))]
    assert [log.count("$ python -m lmtrain") for log in logs] == [2, 2]
    assert ["resumed after step" in log for log in logs] == [True, True]


@pytest.mark.slow
def test_a_sweep_killed_repeatedly_ends_like_an_undisturbed_one(tiny: list[str], tmp_path: Path, cli: Cli) -> None:
    steps = ["trainer.max_steps=40", "trainer.checkpoint_interval=5"]
    command = [*tiny, *steps, f"seed=range(0,{JOBS})", "hydra.launcher.n_jobs=2"]
    chance = random.Random(0)
    finished: dict[Path, tuple[int, str]] = {}
    for _ in range(KILLS):
        before = {path: path.stat().st_size for path in (tmp_path / "sweep").glob("*/metrics.jsonl")}
        process = cli.start(*command)
        deadline = time.monotonic() + chance.choice([2, 60])  # sometimes before any work is done
        while time.monotonic() < deadline and process.poll() is None:
            if any(path.stat().st_size > before.get(path, 0) for path in (tmp_path / "sweep").glob("*/metrics.jsonl")):
                break
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1.5))
        process.kill()
        finished |= {run: state for run, state in ended(tmp_path) if run not in finished}
    done = cli(*command, timeout=60 * JOBS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(statuses(tmp_path)) == JOBS
    assert {*statuses(tmp_path).values()} == {"completed"}
    assert finished.items() <= dict(ended(tmp_path)).items(), "a finished job was run again"
    compared = 0
    for seed in range(JOBS):
        all_kept = ["trainer.checkpoint_interval=1", "trainer.keep_every=1"]
        assert (
            cli("experiments=tiny", steps[0], *all_kept, f"seed={seed}", f"hydra.run.dir=undisturbed-{seed}").returncode
            == 0
        )
        undisturbed = UndisturbedRun(tmp_path / f"undisturbed-{seed}")
        (run,) = (tmp_path / "sweep").glob(f"seed={seed},*")
        # A checkpoint that was saved at a signal records its step as half done, so the last one may not be comparable.
        last = "checkpoints/step-00000040"
        half_done = load_checkpoint(run / last).state["train"]["pending"] is not None
        wheres = ("metrics.jsonl", "result.json", *([] if half_done else [last]))
        assert [found for found in undisturbed.differences(run, completed=True) if found.where in wheres] == []
        compared += undisturbed.compared_checkpoints
    assert compared >= JOBS
    starts = [path.read_text().count("$ python") for path in (tmp_path / "sweep").glob("*/job.log")]
    print(f"{JOBS} jobs, {KILLS} kills: started {sum(starts)} times, {compared} checkpoints compared")


def ended(folder: Path) -> Iterator[tuple[Path, tuple[int, str]]]:
    """Yield each completed run with the time of its result and its log."""
    for path in (folder / "sweep").glob("*/result.json"):
        if result(path.parent)["status"] == "completed":
            yield path.parent, (path.stat().st_mtime_ns, (path.parent / "job.log").read_text())
