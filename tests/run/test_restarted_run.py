"""Commands that Slurm or torchrun starts again continue their own run."""

import re
import sys
from pathlib import Path

import pytest
from support.command_line import Cli, wait_for_step
from support.slurm import Slurm, wait_for
from support.tokens import TINY, write_tiny_experiment

from lmtrain.checkpoint.files import load_checkpoint
from lmtrain.files.limited import read_json
from lmtrain.verify.bit_comparison import UndisturbedRun

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "clusters.md"
RESTART = {"SLURM_JOB_ID": "1", "SLURM_RESTART_COUNT": "1"}


@pytest.fixture
def tiny(token_folder: Path) -> list[str]:
    return [*TINY, f"data.path={token_folder}", "hydra.run.dir=out"]


def stop_after_step(step: int, cli: Cli, folder: Path, *command: str) -> None:
    """Start a run that takes long, and kill it after a step."""
    process = cli.start(*command)
    wait_for_step(folder / "out", step)
    process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
@pytest.mark.parametrize("interval", [4, 1000])  # with 1000, it is killed before its first checkpoint
def test_a_restarted_command_continues_its_run_and_then_has_nothing_to_do(
    tiny: list[str], tmp_path: Path, cli: Cli, variable: str, interval: int
) -> None:
    command = [*tiny, "trainer.max_steps=300"]
    command += [f"trainer.checkpoint_interval={interval}", f"trainer.eval_interval={interval}"]
    stop_after_step(8, cli, tmp_path, *command)
    assert not (tmp_path / "out" / "result.json").exists()
    by = "Slurm" if variable.startswith("SLURM") else "torchrun"

    refused = cli(*command, **{variable: "0"})
    assert refused.returncode == 2
    assert "hydra.run.dir=out: already contains a run; continue it with resume=out" in refused.stderr

    done = cli(*command, **{variable: "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"restarted by {by}: continues the run in out\n" in done.stdout
    assert ("resumed after step" in done.stdout) == (interval == 4)
    result = read_json(tmp_path / "out" / "result.json")
    assert (result["status"], result["steps"]) == ("completed", 300)
    assert cli(*command, "hydra.run.dir=alone").returncode == 0
    wheres = ("metrics.jsonl", "result.json", "checkpoints/step-00000300")
    found = UndisturbedRun(tmp_path / "alone").differences(tmp_path / "out", completed=True)
    assert [one for one in found if one.where in wheres] == []

    before = (tmp_path / "out" / "result.json").stat().st_mtime_ns
    done = cli(*command, **{variable: "2"})
    assert done.returncode == 0
    assert done.stdout == f"restarted by {by}: the run in out is completed; nothing is left to do\n"
    assert (tmp_path / "out" / "result.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_restart_with_another_config_is_an_error_that_names_the_difference(
    tiny: list[str], tmp_path: Path, cli: Cli
) -> None:
    stop_after_step(5, cli, tmp_path, *tiny, "trainer.max_steps=100000")
    done = cli(*tiny, "trainer.max_steps=100000", "optimizer.weight_decay=0.2", **RESTART)
    assert done.returncode == 2
    assert done.stderr == (
        "config error: hydra.run.dir=out: the run there has another config (optimizer.weight_decay: 0.1 → 0.2), so the "
        "restart by Slurm can't continue it; continue it as it is with resume=out, or give another folder\n"
    )
    # A restart in a directory without a run, such as the default one, is a new run.
    done = cli(*tiny, "hydra.run.dir=new", **RESTART)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "restarted" not in done.stdout


def script_of_the_page(experiment: str, options: str) -> str:
    """Return the script in docs/how-to/clusters.md, for another experiment, this Python, and without GPUs."""
    blocks = re.findall(r"```sh\n(#!/bin/bash\n.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (script,) = (block for block in blocks if "hydra.run.dir" in block and "WORLD_SIZE" not in block)
    assert "--gpus=1 --cpus-per-task=8" in script, script
    assert "experiments=mine" in script
    script = script.replace("--gpus=1 --cpus-per-task=8", "--cpus-per-task=2")
    return script.replace("python -m", f"{sys.executable} -m").replace("experiments=mine", f"{experiment} {options}")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["warned", "requeued", "preempted"])
def test_the_script_of_the_page_continues_its_run(
    token_folder: Path, tmp_path: Path, cli: Cli, slurm: Slurm, how: str
) -> None:
    write_tiny_experiment(tmp_path, token_folder)
    options = "trainer.max_steps=700 trainer.eval_interval=300 trainer.checkpoint_interval=300"
    (tmp_path / "train.sh").write_text(script_of_the_page("experiments=tiny", options))
    job = slurm("sbatch", "--parsable", "--partition=main", "--time=30", "train.sh", folder=tmp_path).strip()
    run = tmp_path / "outputs" / f"mine-{job}"
    wait_for_step(run, 5, timeout_s=200)
    if how == "warned":
        slurm("scancel", "--signal=USR1", job)
    elif how == "requeued":
        slurm("scontrol", "requeue", job)
    else:
        slurm("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true")
    wait_for(lambda: slurm.jobs().get(job) == "PENDING" and slurm.field(job, "Restarts") == "1")
    assert read_json(run / "result.json")["status"] == "interrupted"  # it had the time to save
    slurm.start_again(job)
    slurm.wait_until_gone(job)
    output = (tmp_path / f"mine-{job}.out").read_text()
    assert f"restarted by Slurm: continues the run in outputs/mine-{job}\n" in output, output
    assert read_json(run / "result.json")["status"] == "completed"
    assert cli("experiments=tiny", *options.split(), "hydra.run.dir=alone").returncode == 0
    last = "checkpoints/step-00000700"
    assert load_checkpoint(run / last).state["train"]["pending"] is None
    found = UndisturbedRun(tmp_path / "alone").differences(run, completed=True)
    assert [one for one in found if one.where in ("metrics.jsonl", "result.json", last)] == []


@pytest.mark.slow
def test_the_script_of_the_page_for_several_nodes_continues_its_run(
    token_folder: Path, tmp_path: Path, slurm: Slurm
) -> None:
    write_tiny_experiment(tmp_path, token_folder)
    options = "trainer.max_steps=400 trainer.eval_interval=300 trainer.checkpoint_interval=300"
    blocks = re.findall(r"```sh\n(#!/bin/bash\n.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (script,) = (block for block in blocks if "WORLD_SIZE" in block)
    for old, new in (
        ("--ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8", "--ntasks-per-node=1 --cpus-per-task=1"),
        ('$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)', "127.0.0.1"),  # both nodes are this machine
        ("python -m", f"{sys.executable} -m"),
        ("experiments=mine", f"experiments=tiny {options}"),
    ):
        assert old in script
        script = script.replace(old, new)
    (tmp_path / "train.sh").write_text(script)
    job = slurm("sbatch", "--parsable", "--partition=both", "--time=30", "train.sh", folder=tmp_path).strip()
    run = tmp_path / "outputs" / f"big-{job}"
    wait_for_step(run, 5, timeout_s=200)
    slurm("scancel", "--signal=USR1", job)
    wait_for(lambda: slurm.jobs().get(job) == "PENDING" and slurm.field(job, "Restarts") == "1")
    assert read_json(run / "result.json")["status"] == "interrupted"
    slurm.start_again(job)
    slurm.wait_until_gone(job)
    output = (tmp_path / f"big-{job}.out").read_text()
    assert output.count(f"restarted by Slurm: continues the run in outputs/big-{job}\n") == 1, output
    assert read_json(run / "result.json")["status"] == "completed"
    assert read_json(run / "environment.json")["processes"] == "2 processes with DDP"


@pytest.mark.slow
def test_a_cancelled_job_does_not_go_back_into_the_queue(token_folder: Path, tmp_path: Path, slurm: Slurm) -> None:
    write_tiny_experiment(tmp_path, token_folder)
    (tmp_path / "train.sh").write_text(script_of_the_page("experiments=tiny", "trainer.max_steps=100000"))
    job = slurm("sbatch", "--parsable", "--partition=main", "--time=30", "train.sh", folder=tmp_path).strip()
    wait_for_step(tmp_path / "outputs" / f"mine-{job}", 5, timeout_s=200)
    slurm("scancel", job)
    slurm.wait_until_gone(job)
    assert slurm.field(job, "JobState") == "CANCELLED"
    assert read_json(tmp_path / "outputs" / f"mine-{job}" / "result.json")["status"] == "interrupted"
