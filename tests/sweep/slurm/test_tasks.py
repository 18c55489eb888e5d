"""Runs of several processes on a real Slurm: one for each task of a job, on one node and on two."""

import json
from pathlib import Path

import pytest
from support.command_line import Cli, wait_for_line, wait_for_step
from support.ranks import train_ranks
from support.slurm import Slurm, wait_for
from support.tiny_trainer import timeless_metrics
from support.tokens import write_failing_model, write_tiny_experiment

TIMEOUT_S = 500
TWO_NODES = ["hydra.launcher.partition=both", "hydra.launcher.nodes=2"]
TWO_TASKS = ["hydra.launcher.partition=main", "hydra.launcher.tasks_per_node=2"]


@pytest.fixture
def tiny(token_folder: Path, tmp_path: Path) -> list[str]:
    pytest.importorskip("submitit", reason="needs the extra submitit")
    write_tiny_experiment(tmp_path, token_folder)
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=50"]
    return ["-m", "experiments=tiny", "hydra.sweep.dir=sweep", *launcher]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["hydra.launcher.nodes=0"], "hydra.launcher.nodes=0: give a whole number, 1 or more"),
        (["hydra.launcher.nodes=3"], "the sequences of a step can't be shared by 3 processes; start 2 or 4"),
        ([*TWO_TASKS, "parallel=none"], "parallel=none: hydra.launcher.nodes and tasks_per_node start 2 processes"),
    ],
)
def test_a_mistake_is_one_line(tiny: list[str], tmp_path: Path, cli: Cli, settings: list[str], message: str) -> None:
    (tmp_path / "sbatch").touch(mode=0o755)  # not called
    (tmp_path / "srun").touch(mode=0o755)
    done = cli(*tiny, "seed=1,2", *settings, PATH=str(tmp_path))
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("settings", [TWO_NODES, TWO_TASKS], ids=["two nodes", "two tasks"])
def test_the_tasks_of_a_job_train_one_run_and_continue_it_after_a_warning_or_a_requeue(
    tiny: list[str], tmp_path: Path, cli: Cli, slurm: Slurm, settings: list[str]
) -> None:
    # The model also waits, so that no machine is too fast for the signals.
    write_failing_model(tmp_path, "ValueError", condition="__import__('time').sleep(0.01)")
    experiment = tmp_path / "experiments" / "tiny.yaml"
    lines = experiment.read_text().splitlines()
    experiment.write_text("\n".join(line for line in lines if not line.startswith(("  n_", "  d_", "model:"))))
    steps = ["model=fails", "trainer.max_steps=200", "trainer.eval_interval=80", "trainer.checkpoint_interval=80"]
    started = cli.start(*tiny, *steps, *settings, "seed=1,2", **slurm.variables)
    wait_for_line("submitted 2 jobs", started)
    wait_for(lambda: len([*(tmp_path / "sweep").glob("seed=*")]) == 2)
    runs = [next((tmp_path / "sweep").glob(f"seed={seed},*")) for seed in (1, 2)]
    jobs = [str(json.loads((tmp_path / "sweep" / "slurm.json").read_text())[run.name]) for run in runs]
    for run, job, command in zip(runs, jobs, (["scancel", "--signal=USR2"], ["scontrol", "requeue"]), strict=True):
        wait_for_step(run, 5, timeout_s=200)
        slurm(*command, job)
    for job in jobs:
        wait_for(lambda job=job: slurm.jobs().get(job) == "PENDING" and slurm.field(job, "Restarts") == "1")
    slurm.start_again(*jobs)
    assert started.wait(TIMEOUT_S) == 0, started.stdout + started.stderr
    train_ranks(cli, 2, "experiments=tiny", *steps, "seed=1", "hydra.run.dir=alone")
    for run in runs:
        assert json.loads((run / "environment.json").read_text())["processes"] == "2 processes with DDP"
        assert json.loads((run / "result.json").read_text())["status"] == "completed"
        log = (run / "job.log").read_text()
        assert log.count("$ python -m lmtrain") == 2
        assert "resumed after step" in log
    assert "stopped by SIGUSR2" in (runs[0] / "job.log").read_text()
    assert timeless_metrics(runs[0]) == timeless_metrics(tmp_path / "alone")
