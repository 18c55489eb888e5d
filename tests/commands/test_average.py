"""Tests of `average`: the mean of real checkpoints is a run that the other commands accept."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.command_line import Cli
from support.tokens import TINY, write_tokens

from lmtrain.checkpoint.files import load_checkpoint
from lmtrain.comparison.runs import load_runs
from lmtrain.run.reading.loaded import load_model
from lmtrain.run.reading.stored_run import load_run

pytestmark = pytest.mark.slow  # they train small runs

RUN = [*TINY, "data.path=data/tiny", "trainer.keep_every=4"]


@pytest.fixture(scope="module")
def trained(module_cli: Cli) -> Cli:
    """Train a run with checkpoints after steps 4, 8 and 12, and two forks of it."""
    write_tokens(module_cli.folder / "data" / "tiny")
    done = module_cli(*RUN, "hydra.run.dir=outputs/run")
    assert done.returncode == 0, done.stderr
    for seed in (1, 2):
        done = module_cli("fork=outputs/run", "step=4", f"seed={seed}", f"hydra.run.dir=outputs/fork{seed}")
        assert done.returncode == 0, done.stderr
    return module_cli


def test_an_average_is_a_run(trained: Cli) -> None:
    done = trained(
        "average", "outputs/run", "--steps", "4-12", "--out", "outputs/mean", "--evaluate", "--device", "cpu"
    )
    assert done.returncode == 0, done.stderr
    run, mean = (trained.folder / "outputs" / name for name in ("run", "mean"))
    folders = {step: run / "checkpoints" / f"step-{step:08d}" for step in (4, 8, 12)}
    ingredients = {step: load_checkpoint(folder) for step, folder in folders.items()}
    made = load_checkpoint(mean / "checkpoints" / "step-00000012")
    for name, value in made.tensors["model"].items():
        parts = [each.tensors["model"][name].double() for each in ingredients.values()]
        assert torch.equal(value, (sum(parts, torch.zeros_like(parts[0])) / 3).float())
    assert made.tensors["optimizer"] == {}
    assert made.state["train"]["first_step"] == made.state["train"]["step"] == 12
    assert made.state["train"]["tokens"] == ingredients[12].state["train"]["tokens"]
    assert made.state["run_id"] != ingredients[12].state["run_id"]
    records = load_run(mean).environment["averaged_from"]
    assert [(record["step"], record["weight"], record["run"]) for record in records] == [
        (step, 1.0, str(run)) for step in (4, 8, 12)
    ]
    for record, folder in zip(records, folders.values(), strict=True):
        manifest = json.loads((folder / "MANIFEST.json").read_text())
        assert record["sha256"] == manifest["model.safetensors"]["sha256"]
    # The table has the loss of each ingredient, as `evaluate` measures it, and that of the mean.
    for path, step in [*((run, step) for step in folders), (mean, 12)]:
        assert f"{load_model(path, str(step), 'cpu').evaluate().loss:.4f}" in done.stdout


def test_an_average_can_be_continued_forked_and_evaluated(trained: Cli) -> None:
    done = trained("average", "outputs/run", "--steps", "last:2", "--out", "outputs/last")
    assert done.returncode == 0, done.stderr
    assert "averaged 2 checkpoints: outputs/run after step 8, 12" in done.stdout
    assert "next: python -m lmtrain evaluate outputs/last" in done.stdout
    fork = trained("fork=outputs/last", "trainer.max_steps=14", "hydra.run.dir=outputs/onward")
    assert fork.returncode == 0, fork.stderr
    assert "forked from outputs/last at step 12" in fork.stdout
    resumed = trained("resume=outputs/last", "trainer.max_steps=14")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after step 12, 2 to go" in resumed.stdout
    assert trained("evaluate", "outputs/last", "outputs/onward").returncode == 0
    onward, last = (load_run(trained.folder / "outputs" / name) for name in ("onward", "last"))
    assert [line["train/loss"] for line in onward.metrics] == [line["train/loss"] for line in last.metrics]
    # `compare` keeps the mean apart from the run, which has the same config.
    found = {run.path.name: run for run in load_runs([trained.folder / "outputs" / name for name in ("run", "last")])}
    assert found["last"].setting["averaged"] == "8,12"
    assert "averaged" not in found["run"].setting
    shutil.move(trained.folder / "outputs" / "last", trained.folder / "moved")
    (fork_of_mean,) = load_runs([trained.folder / "outputs" / "onward"])
    assert fork_of_mean.branch is not None
    assert fork_of_mean.branch.parent_setting["averaged"] == "8,12"  # the fork has recorded it


def test_forks_are_averaged_and_strangers_are_named(trained: Cli) -> None:
    done = trained("average", "outputs/fork1", "outputs/fork2", "--steps", "latest")
    assert done.returncode == 0, done.stderr
    assert "note:" not in done.stdout
    directory = Path(done.stdout.partition("\nrun ")[2].splitlines()[0])
    assert directory.parent == Path("outputs/lmtrain")
    assert load_run(trained.folder / directory).checkpoints == [12]
    assert trained(*RUN, "seed=9", "hydra.run.dir=outputs/stranger").returncode == 0
    done = trained("average", "outputs/fork1", "outputs/stranger", "--out", "outputs/soup")
    assert done.returncode == 0, done.stderr
    assert "note: the runs were not forked from one run" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["outputs/run", "--steps", "5,8"],
            "--steps 5: outputs/run has no checkpoint of this step; it has 4, 8, 12 (a",
        ),
        (["outputs/run", "--steps", "last:2", "--out", "outputs/fork1"], "--out outputs/fork1: exists already"),
        (["outputs/run", "--steps", "last:2", "--weights", "1,-1"], "--weights -1: must be above 0"),
        (["outputs/run", "outputs/named"], "outputs/named: has a tokenizer.json, unlike outputs/run; only models with"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(trained: Cli, arguments: list[str], message: str) -> None:
    named = trained.folder / "outputs" / "named"
    if not named.exists():
        shutil.copytree(trained.folder / "outputs" / "fork1", named, symlinks=True)
        (named / "tokenizer.json").write_text("{}")
    before = sorted(trained.folder.rglob("*"))
    done = trained("average", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"config error: {message}")
    assert done.stderr.count("\n") == 1
    assert sorted(trained.folder.rglob("*")) == before


def test_an_error_while_writing_leaves_nothing(trained: Cli) -> None:
    broken = trained.folder / "outputs" / "broken"
    shutil.copytree(trained.folder / "outputs" / "fork1", broken, symlinks=True)
    (broken / "config.yaml").write_text("a: &b [*b]")
    done = trained("average", "outputs/broken", "--steps", "last:2", "--out", "outputs/nothing")
    assert done.returncode == 2
    assert "has an alias" in done.stderr
    assert not (trained.folder / "outputs" / "nothing").exists()
