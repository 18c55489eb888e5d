"""Whole sweeps on a real Slurm, also with warnings, preemption and cancelled jobs."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Cli, wait_for_line, wait_for_step
from support.slurm import Slurm, wait_for
from support.tokens import write_failing_model, write_tiny_experiment

from lmtrain.checkpoint.files import load_checkpoint
from lmtrain.sweep.slurm.launcher import SlurmLauncher
from lmtrain.verify.bit_comparison import UndisturbedRun

SLURM = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=main", "hydra.launcher.timeout_min=50"]
TIMEOUT_S = 500


@pytest.fixture
def tiny(token_folder: Path, tmp_path: Path) -> list[str]:
    pytest.importorskip("submitit", reason="needs the extra submitit")
    write_tiny_experiment(tmp_path, token_folder)
    return ["-m", "experiments=tiny", "hydra.sweep.dir=sweep", *SLURM]


def report(folder: Path) -> dict[str, Any]:
    """Return the jobs in `sweep.json` by title."""
    return {job["title"]: job for job in json.loads((folder / "sweep" / "sweep.json").read_text())["jobs"]}


def without_model_settings(folder: Path) -> None:
    """Remove the model's settings from the experiment, because they would be unknown keys of another model."""
    experiment = folder / "experiments" / "tiny.yaml"
    lines = experiment.read_text().splitlines()
    experiment.write_text("\n".join(line for line in lines if not line.startswith(("  n_", "  d_", "model:"))))


def slurm_job(run: Path) -> str:
    return str(json.loads((run.parent / "slurm.json").read_text())[run.name])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "+hydra.launcher.partion=gpu",
            "hydra.launcher.partion=gpu: unknown key; did you mean hydra.launcher.partition?",
        ),
        (
            "+hydra.launcher.reservation=course",
            "any option of sbatch works as +hydra.launcher.additional_parameters.reservation=course",
        ),
        ("hydra.launcher.timeout_min=0.5", "hydra.launcher.timeout_min=0.5: give a whole number, 1 or more"),
        ("hydra.launcher.max_num_timeout=-1", "hydra.launcher.max_num_timeout=-1: give a whole number, 0 or more"),
        ("hydra.launcher.name=none", "hydra/launcher=submitit_slurm: there is no sbatch here"),
    ],
)
def test_a_mistake_is_one_line(tiny: list[str], cli: Cli, setting: str, message: str) -> None:
    done = cli(*tiny, "seed=1,2", setting, PATH="")
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_sweep_is_one_job_array_and_the_same_command_runs_what_is_missing(
    tiny: list[str], tmp_path: Path, cli: Cli, slurm: Slurm
) -> None:
    write_failing_model(
        tmp_path, "MemoryError('no memory for 12 GB')", condition="os.environ.get('SLURM_ARRAY_TASK_ID') == '0'"
    )
    without_model_settings(tmp_path)
    command = [*tiny, "model=fails", "hydra.launcher.cpus_per_task=2"]
    done = cli(*command, "seed=1,2", timeout=TIMEOUT_S, **slurm.variables)
    assert done.returncode == 1, done.stdout + done.stderr
    jobs = report(tmp_path)
    assert {title: job["status"] for title, job in jobs.items()} == {"seed=1": "failed", "seed=2": "completed"}
    assert jobs["seed=1"]["reason"] == "MemoryError: no memory for 12 GB"
    array = re.search(r"submitted 2 jobs to Slurm: squeue -j (\d+); to cancel: scancel \1\n", done.stdout)
    assert array is not None, done.stdout
    ids = json.loads((tmp_path / "sweep" / "slurm.json").read_text())
    assert sorted(ids.values()) == [f"{array[1]}_0", f"{array[1]}_1"]
    assert "Traceback" not in done.stdout + done.stderr
    for name in ids:
        result = json.loads((tmp_path / "sweep" / name / "result.json").read_text())
        assert result["status"] == jobs[name.partition(",")[0]]["status"]

    # Only the new job is submitted: as the only one, it is no array.
    done = cli(*command, "seed=1,2,3", timeout=TIMEOUT_S, **slurm.variables)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "submitted 1 job to Slurm" in done.stdout
    assert {title for title, job in report(tmp_path).items() if job["ran"]} == {"seed=3"}
    counts = re.search(r"3 jobs: (.*); everything is in sweep", done.stdout)
    assert counts is not None
    assert sorted(counts[1].split(", ")) == ["1 completed", "1 completed earlier", "1 failed earlier"]


@pytest.mark.slow
def test_jobs_that_are_warned_requeued_or_preempted_continue_and_end_with_the_same_bits(
    tiny: list[str], tmp_path: Path, cli: Cli, slurm: Slurm
) -> None:
    # The model only waits, so that no machine is too fast for the signals.
    write_failing_model(tmp_path, "ValueError", condition="__import__('time').sleep(0.01)")
    without_model_settings(tmp_path)
    steps = ["model=fails", "trainer.max_steps=300", "trainer.eval_interval=120", "trainer.checkpoint_interval=120"]
    started = cli.start(*tiny, *steps, "seed=1,2,3", **slurm.variables)
    wait_for_line("submitted 3 jobs", started)
    wait_for(lambda: len([*(tmp_path / "sweep").glob("seed=*")]) == 3)
    warned, requeued, preempted = runs = [next((tmp_path / "sweep").glob(f"seed={seed},*")) for seed in (1, 2, 3)]
    ids = [slurm_job(run) for run in runs]
    for run in (warned, requeued):
        wait_for_step(run, 5, timeout_s=200)
        if run is warned:  # as Slurm does when the time is almost over
            slurm("scancel", "--signal=USR2", slurm_job(run))
        else:
            slurm("scontrol", "requeue", slurm_job(run))
    wait_for_step(preempted, 5, timeout_s=200)
    urgent = slurm("sbatch", "--parsable", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true")
    for job in ids:
        wait_for(lambda job=job: slurm.jobs().get(job) == "PENDING" and slurm.field(job, "Restarts") == "1")
    slurm.wait_until_gone(urgent.strip())
    slurm.start_again(*ids)
    assert started.wait(TIMEOUT_S) == 0, started.stdout + started.stderr
    assert [job["status"] for job in report(tmp_path).values()] == ["completed"] * 3
    compared = 0
    for seed, run in zip((1, 2, 3), runs, strict=True):
        log = (run / "job.log").read_text()
        assert log.count("$ python -m lmtrain") == 2
        assert "resumed after step" in log
        alone = f"alone-{seed}"
        done = cli("experiments=tiny", *steps, f"seed={seed}", f"hydra.run.dir={alone}", timeout=TIMEOUT_S)
        assert done.returncode == 0, done.stdout + done.stderr
        undisturbed = UndisturbedRun(tmp_path / alone)
        last = "checkpoints/step-00000300"
        assert load_checkpoint(run / last).state["train"]["pending"] is None
        wheres = ("metrics.jsonl", "result.json", last)
        assert [found for found in undisturbed.differences(run, completed=True) if found.where in wheres] == []
        compared += undisturbed.compared_checkpoints
    assert compared >= 3


@pytest.mark.slow
def test_ctrl_c_leaves_the_jobs_to_slurm_and_the_same_command_waits_for_them_again(
    tiny: list[str], tmp_path: Path, cli: Cli, slurm: Slurm
) -> None:
    command = [*tiny, "trainer.max_steps=100000", "trainer.checkpoint_interval=1000", "seed=1"]
    started = cli.start(*command, **slurm.variables)
    wait_for_line("submitted 1 job", started)
    (name,) = json.loads((tmp_path / "sweep" / "slurm.json").read_text())
    run = tmp_path / "sweep" / name
    wait_for_step(run, 3, timeout_s=200)
    started.send_signal(signal.SIGINT)
    job = slurm_job(run)
    assert started.wait(60) == 130, started.stdout + started.stderr
    assert f"1 job stays in Slurm's queue; to cancel: scancel {job}\n" in started.stdout
    assert [one["status"] for one in report(tmp_path).values()] == ["running"]
    assert slurm.jobs()[job] == "RUNNING"

    again = cli.start(*command, **slurm.variables)
    wait_for_line(f"1 job still in Slurm's queue from an earlier command: {job}", again)
    slurm("scancel", job)
    assert again.wait(TIMEOUT_S) == 1, again.stdout + again.stderr
    assert "interrupted: Slurm: CANCELLED" in again.stdout
    ended = json.loads((run / "result.json").read_text())
    assert ended["status"] == "interrupted"
    assert (run / "checkpoints" / f"step-{ended['steps']:08}").is_dir()


def test_the_example_chooses_the_launcher_and_the_sweep(cli: Cli) -> None:
    done = cli("experiments=slurm", "hydra.launcher.partition=gpu", "--cfg", "hydra", "-p", "hydra.launcher")
    assert done.returncode == 0, done.stderr
    assert {"_target_: hydra_plugins.lmtrain.SlurmLauncher", "partition: gpu", "timeout_min: 240"} <= {
        *done.stdout.splitlines()
    }
    assert "warn" not in done.stderr.lower(), done.stderr  # no schema of Hydra's plugin with the same name


@pytest.mark.slow
def test_a_job_with_several_processes_starts_them_and_continues_with_them(
    tiny: list[str], tmp_path: Path, cli: Cli, slurm: Slurm
) -> None:
    write_failing_model(tmp_path, "ValueError", condition="__import__('time').sleep(0.01)")  # it only waits
    without_model_settings(tmp_path)
    steps = ["model=fails", "trainer.max_steps=300", "parallel.world_size=2", "hydra.launcher.cpus_per_task=2"]
    started = cli.start(*tiny, *steps, **slurm.variables)
    wait_for_line("submitted 1 job", started)
    (name,) = json.loads((tmp_path / "sweep" / "slurm.json").read_text())
    run = tmp_path / "sweep" / name
    wait_for_step(run, 5, timeout_s=200)
    job = slurm_job(run)
    slurm("scancel", "--signal=USR2", job)  # as Slurm does when the time is almost over
    wait_for(lambda: slurm.jobs().get(job) == "PENDING" and slurm.field(job, "Restarts") == "1")
    slurm.start_again(job)
    assert started.wait(TIMEOUT_S) == 0, started.stdout + started.stderr
    log = (run / "job.log").read_text()
    assert log.count("2 processes with DDP") == 2
    assert log.count("resumed after step") == 1
    assert "Traceback" not in log


def test_a_job_gets_a_gpu_for_each_of_its_processes() -> None:
    launcher = SlurmLauncher("folder", 1, gpus_per_node=1)
    for processes, gpus in ((1, 1), (4, 4), (2, 4)):
        launcher.give_gpus(processes)
        assert launcher.options["gpus_per_node"] == gpus
    without = SlurmLauncher("folder", 1, gpus_per_node=None)
    without.give_gpus(4)
    assert without.options["gpus_per_node"] is None
