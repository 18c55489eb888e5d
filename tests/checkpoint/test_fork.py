"""Forks of a run and repeated runs, as real runs from the command line."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from support.command_line import Cli, wait_for_step
from support.tiny_trainer import timeless_metrics
from support.tokens import TINY, write_tokens

from lmtrain.checkpoint.files import Checkpoint, load_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder, Retention
from lmtrain.checkpoint.fork import load_fork_origin
from lmtrain.checkpoint.steps import checkpoint_steps
from lmtrain.files.limited import read_json
from lmtrain.files.metrics import read_metrics


@pytest.fixture(scope="module")
def trained(module_cli: Cli) -> Path:
    data = write_tokens(module_cli.folder / "data")
    train(module_cli, *TINY, f"data.path={data}", "model.dropout=0.1", "trainer.keep_every=4", "hydra.run.dir=origin")
    return module_cli.folder / "origin"


@pytest.fixture
def origin(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of a run of 12 steps with dropout and checkpoints of the steps 4, 8 and 12."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "origin", symlinks=True))


def train(cli: Cli, *arguments: str) -> str:
    done = cli(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_fork_without_changes_equals_its_origin(origin: Path, tmp_path: Path, cli: Cli) -> None:
    output = train(cli, "fork=runs/origin", "step=8", "hydra.run.dir=runs/fork")
    fork = tmp_path / "runs" / "fork"
    assert "forked from runs/origin at step 8" in output
    assert timeless_metrics(fork) == [line for line in timeless_metrics(origin) if line["step"] > 8]
    theirs, ours = (load_checkpoint(run / "checkpoints" / "step-00000012") for run in (origin, fork))
    assert all(torch.equal(theirs.tensors["model"][name], value) for name, value in ours.tensors["model"].items())
    recorded = read_json(fork / "environment.json")
    run_id = read_json(origin / "environment.json")["run_id"]
    config = OmegaConf.to_container(OmegaConf.load(origin / "config.yaml"))
    assert recorded["forked_from"] == {
        "run": str(origin),
        "run_id": run_id,
        "step": 8,
        "config": config,
        "forked_from": None,
    }
    assert recorded["run_id"] != run_id
    assert OmegaConf.load(fork / "config.yaml").step == 8


@pytest.mark.slow
def test_a_fork_may_have_another_schedule_and_more_steps(origin: Path, tmp_path: Path, cli: Cli) -> None:
    # The origin's scheduler.warmup_steps is kept. The other schedule has no scheduler.max_steps.
    train(cli, "fork=runs/origin", "scheduler=constant", "optimizer.lr=1e-3", "trainer.max_steps=16",
          "hydra.run.dir=runs/branch")  # fmt: skip
    branch = tmp_path / "runs" / "branch"
    lines = read_metrics(branch / "metrics.jsonl")
    assert [line["step"] for line in lines] == [13, 14, 15, 16]
    assert {line["lr"] for line in lines} == {1e-3}
    cfg = OmegaConf.load(branch / "config.yaml")
    assert (cfg.scheduler.warmup_steps, cfg.model.dropout, cfg.step) == (3, 0.1, 12)
    result = read_json(branch / "result.json")
    assert result["best_val_loss"] == min(line["val/loss"] for line in lines if "val/loss" in line)


@pytest.mark.slow
def test_values_that_an_experiment_set_for_another_choice_are_dropped(
    token_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text("# @package _global_\nscheduler:\n  min_lr: 1e-5\n")
    tiny = [*TINY, f"data.path={token_folder}", "experiments=mine"]
    train(cli, *tiny, "hydra.run.dir=runs/origin")
    train(cli, "fork=runs/origin", "step=8", "scheduler=constant", "hydra.run.dir=runs/branch")
    assert "min_lr" not in OmegaConf.load(tmp_path / "runs" / "branch" / "config.yaml").scheduler


def test_a_fork_with_other_data_starts_at_the_beginning_of_that_data(origin: Path, tmp_path: Path, cli: Cli) -> None:
    write_tokens(tmp_path / "data" / "other", train=9000)
    output = train(cli, "fork=runs/origin", "step=4", "data.path=data/other", "seed=5", "hydra.run.dir=runs/other")
    assert "new: the random generators, the order of the data" in output
    state = load_checkpoint(tmp_path / "runs" / "other" / "checkpoints" / "step-00000012").state["train"]
    assert state["samples"] == (12 - 4) * 8
    assert state["tokens"] == 12 * 8 * 16


def test_data_that_was_changed_in_place_is_refused(origin: Path, token_folder: Path, cli: Cli) -> None:
    file = token_folder / "train.bin"
    times = file.stat()
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    done = cli("fork=runs/origin", "step=4", f"data.path={token_folder}")
    assert done.returncode == 2
    assert f"data.path={token_folder}: not the data that this run was trained on: {file}: not the file" in done.stderr


@pytest.mark.slow
def test_another_optimizer_starts_without_state(origin: Path, tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "conf" / "optimizer"
    folder.mkdir(parents=True)
    (folder / "sgd.yaml").write_text("_target_: torch.optim.SGD\nlr: 1e-2\nmomentum: 0.9\n")
    output = train(cli, "fork=runs/origin", "step=8", "optimizer=sgd", "hydra.run.dir=runs/sgd")
    assert "new: the optimizer's state" in output
    saved = load_checkpoint(tmp_path / "runs" / "sgd" / "checkpoints" / "step-00000012").tensors["optimizer"]
    assert {name.rpartition("/")[2] for name in saved} == {"momentum_buffer"}


@pytest.mark.slow
def test_a_fork_resumes_like_any_run(origin: Path, tmp_path: Path, cli: Cli) -> None:
    train(cli, "fork=runs/origin", "step=4", "trainer.max_steps=8", "hydra.run.dir=runs/short")
    shutil.rmtree(origin / "checkpoints" / "step-00000004")  # as the origin's retention may do
    train(cli, "resume=runs/short", "trainer.max_steps=12", "allow_changes=[scheduler]")
    whole = [line["step"] for line in timeless_metrics(tmp_path / "runs" / "short")]
    assert whole == list(range(5, 13))


@pytest.mark.parametrize("part", ["model", "optimizer", "detector", "rng-0"])
def test_an_origin_that_lacks_a_part_of_the_state_is_refused(tmp_path: Path, part: str) -> None:
    tensors: dict[str, dict[str, torch.Tensor]] = {
        name: {} for name in ("model", "optimizer", "detector", "rng-0") if name != part
    }
    CheckpointFolder.of_run(tmp_path).save(4, Checkpoint(tensors, {"train": {}}), Retention(newest=1))
    with pytest.raises(ValueError, match=f"^fork={tmp_path}: its checkpoint has no {part}$"):
        load_fork_origin(tmp_path, 4)


@pytest.mark.slow
def test_a_fork_that_is_killed_early_resumes_without_its_origin(origin: Path, tmp_path: Path, cli: Cli) -> None:
    losses = {line["step"]: line["train/loss"] for line in timeless_metrics(origin)}
    fork = tmp_path / "runs" / "fork"
    process = cli.start("fork=runs/origin", "step=8", "hydra.run.dir=runs/fork", "trainer.max_steps=100000",
                        "scheduler.max_steps=12", "trainer.checkpoint_interval=100000",
                        "trainer.eval_interval=100000")  # fmt: skip
    wait_for_step(fork, 9)
    process.kill()
    assert checkpoint_steps(fork) == [8]
    shutil.rmtree(origin)
    process = cli.start("resume=runs/fork")
    wait_for_step(fork, 12)
    process.kill()
    lines = timeless_metrics(fork)
    assert [line["step"] for line in lines] == list(range(9, 9 + len(lines)))
    assert [line["train/loss"] for line in lines[:4]] == [losses[step] for step in range(9, 13)]


def test_a_job_of_a_sweep_can_be_forked_by_its_path(origin: Path, tmp_path: Path, cli: Cli) -> None:
    origin.rename(tmp_path / "runs" / "lr=0.001,seed=1")
    train(cli, "fork=runs/lr=0.001,seed=1", "step=8", "hydra.run.dir=runs/fork")
    assert [line["step"] for line in timeless_metrics(tmp_path / "runs" / "fork")] == [9, 10, 11, 12]


@pytest.mark.slow
def test_a_sweep_can_fork_several_checkpoints(origin: Path, tmp_path: Path, cli: Cli) -> None:
    train(cli, "-m", "fork=runs/origin", "step=4,8", "hydra.sweep.dir=runs/sweep")
    firsts = sorted(read_metrics(path)[0]["step"] for path in tmp_path.glob("runs/sweep/*/metrics.jsonl"))
    assert firsts == [5, 9]
    names = sorted(path.name for path in (tmp_path / "runs" / "sweep").iterdir() if path.is_dir())
    assert [name.rpartition(",")[0] for name in names] == ["step=4,fork=origin", "step=8,fork=origin"]
    # The sweep can be repeated although the origin has removed a checkpoint.
    shutil.rmtree(origin / "checkpoints" / "step-00000004")
    again = train(cli, "-m", "fork=./runs/origin/", "step=4,8", "hydra.sweep.dir=runs/sweep")
    assert "2 jobs: 2 completed earlier" in again
    assert len([path for path in (tmp_path / "runs" / "sweep").iterdir() if path.is_dir()]) == 2
    done = cli("-m", "fork=runs/origin", "step=4,8", "seed=2", "hydra.sweep.dir=runs/sweep")
    assert done.returncode == 2
    assert "step=4: runs/origin has checkpoints of these steps: 8, 12" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fork=runs/none"], "fork=runs/none: no such run directory"),
        (["fork="], "fork=: is empty; give a run directory"),
        (["fork=runs/origin", "step=7"], "step=7: runs/origin has checkpoints of these steps: 4, 8, 12"),
        (["fork=runs/origin"], "trainer.max_steps=12: the fork starts after step 12; give more"),
        (["fork=runs/origin", "step=4", "model.d_ff=80"], "does not fit the model"),
        (["fork=runs/origin", "optimizer.lrr=1"], "optimizer.lrr=1: unknown key; did you mean optimizer.lr?"),
        (["-m", "fork=runs/origin", "step=4,5"], "step=5: runs/origin has checkpoints of these steps: 4, 8, 12"),
        (["step=4"], "step=4: works only with fork=RUN_DIR"),
        (["resume=runs/origin", "fork=runs/origin"], "resume continues a run, fork starts a new one from it"),
        (["allow_changes=x", "fork=runs/origin"], "allow_changes: works only with resume=RUN_DIR;"),
        (["-m", "fork=runs/origin,runs/other"], "give a single run (to sweep over its checkpoints, use step=N,M)"),
        (["--rerun", "runs/none"], "runs/none: no run there"),
        (
            ["--rerun", "runs/origin", "seed=3"],
            "seed=3: --rerun repeats a run without changes; to change a run, fork it",
        ),
    ],
)
def test_mistakes_are_reported_without_a_traceback(origin: Path, cli: Cli, arguments: list[str], message: str) -> None:
    done = cli(*arguments)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_rerun_repeats_the_run_even_if_config_files_have_changed(origin: Path, tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "conf" / "trainer"
    folder.mkdir(parents=True)
    shipped = Path(__file__).parents[2] / "conf" / "trainer" / "default.yaml"
    (folder / "default.yaml").write_text(shipped.read_text().replace("grad_clip: 1.0", "grad_clip: 0.5"))
    output = train(cli, "--rerun", "runs/origin", "hydra.run.dir=runs/again")
    assert "identical to runs/origin: every digit of 12 lines of metrics" in output
    again = tmp_path / "runs" / "again"
    assert timeless_metrics(again) == timeless_metrics(origin)
    assert read_json(again / "result.json")["config_hash"] == read_json(origin / "result.json")["config_hash"]
    assert read_json(again / "environment.json")["rerun_of"]["run"] == str(origin)


@pytest.mark.slow
def test_a_rerun_of_a_fork_is_a_fork(origin: Path, tmp_path: Path, cli: Cli) -> None:
    train(cli, "fork=runs/origin", "step=8", "optimizer.lr=1e-3", "hydra.run.dir=runs/fork")
    output = train(cli, "--rerun", "runs/fork", "hydra.run.dir=runs/again")
    assert "identical to runs/fork: every digit of 4 lines of metrics" in output


def test_a_run_with_the_same_config_is_recognised(origin: Path, cli: Cli) -> None:
    output = train(cli, "--rerun", "runs/origin", "hydra.run.dir=runs/again")
    assert "the same config as runs/origin (completed" in output


@pytest.mark.slow
def test_harmful_overrides_recorded_in_a_run_are_refused(origin: Path, tmp_path: Path, cli: Cli) -> None:
    recorded = origin / ".hydra" / "overrides.yaml"
    own = recorded.read_text()
    for line, message in (
        ("hydra.run.dir=elsewhere", "hydra.run.dir=elsewhere: sets Hydra itself"),
        ("hydra/launcher=basic", "hydra/launcher=basic: sets Hydra itself"),
        ("+data@hydra.run=stdlib", "+data@hydra.run=stdlib: sets Hydra itself"),
        ("name=../elsewhere", "name=../elsewhere: leads out of outputs/; give another name with name=NAME"),
        ("++model._target_=os.system", "model._target_=os.system"),
        ("'++name=${oc.env:HOME}'", "oc.env:HOME"),
    ):
        recorded.write_text(f"{own}- {line}\n")
        for arguments in (["fork=runs/origin", "step=4"], ["--rerun", "runs/origin"]):
            done = cli(*arguments)
            assert done.returncode == 2, (line, done.stdout)
            assert message in done.stderr
