"""Searches run as a user starts them, with real trials and kills, and report mistakes at once."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Cli, Started
from support.tokens import TINY

from lmtrain.config.compose import compose
from lmtrain.config.shipped import shipped
from lmtrain.errors import ConfigError
from lmtrain.files.metrics import read_metrics
from lmtrain.sweep.search.optuna_sweeper import read_settings

SEARCH = ["-m", "hydra/sweeper=optuna", "hydra.sweep.dir=search"]


def ended(folder: Path) -> dict[str, Any]:
    """Return the results of the trials that have ended, by directory."""
    results = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/result.json")}
    return {name: result for name, result in results.items() if result["status"] != "interrupted"}


def wait_for(folder: Path, count: int, processes: list[Started]) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if len(found := ended(folder)) >= count:
            return found
        assert all(process.poll() is None for process in processes), [process.stdout for process in processes]
        time.sleep(0.02)
    raise AssertionError([process.stdout for process in processes])


@pytest.mark.slow
def test_a_search_whose_two_workers_are_killed_continues_to_its_number_of_trials(
    token_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    arguments = [
        *SEARCH,
        *TINY,
        f"data.path={token_folder}",
        "trainer.max_steps=40",
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.pruner.n_startup_trials=1",
        "hydra/sweeper/sampler=random",
        "optimizer.lr=tag(log, interval(1e-7, 1e-1))",
        "optimizer.weight_decay=choice(0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1e30)",  # the last diverges
    ]
    workers = [cli.start(*arguments) for _ in range(2)]
    search = tmp_path / "search"
    wait_for(search, 2, workers)
    for worker in workers:
        worker.kill()
    before = ended(search)
    assert 2 <= len(before) < 4
    written = {name: (search / name / "metrics.jsonl").stat().st_mtime_ns for name in before}

    last = cli(*(text.replace("n_jobs=1", "n_jobs=2") for text in arguments))
    assert last.returncode == 0, last.stdout + last.stderr
    report = json.loads((search / "search.json").read_text())
    trials = report["trials"]
    assert [trial["number"] for trial in trials] == list(range(4))
    assert len({trial["directory"] for trial in trials}) == 4
    now = ended(search)
    assert len(now) == 4  # no other run was started
    for trial in trials:
        result = now[trial["directory"]]
        assert trial["status"] == result["status"]
        assert trial["status"] == "diverged" or trial["objective"] is not None
        assert (trial["status"] == "diverged") == (trial["params"]["optimizer.weight_decay"] == 1e30)
        steps = [line["step"] for line in read_metrics(search / trial["directory"] / "metrics.jsonl")]
        assert steps == list(range(1, len(steps) + 1))
        assert trial["status"] == "pruned" or trial["status"] == "diverged" or len(steps) == 40
    assert {name: (search / name / "metrics.jsonl").stat().st_mtime_ns for name in before} == written
    best = min((trial for trial in trials if trial["status"] == "completed"), key=lambda trial: trial["objective"])
    assert report["best"] == best["number"]
    assert f"optimizer.lr={best['params']['optimizer.lr']} optimizer.weight_decay=" in last.stdout
    assert (search / "study.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_hopeless_trial_is_pruned_under_another_launcher_as_well(
    token_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    done = cli(
        *SEARCH,
        *TINY,
        f"data.path={token_folder}",
        "hydra/launcher=basic",
        "hydra/sweeper/sampler=grid",
        "hydra.sweeper.sampler.seed=1",  # tries the good value first
        "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.pruner.n_startup_trials=1",
        "optimizer.lr=1e-2,1e-9",
        "trainer.max_steps=300",
        "trainer.eval_interval=20",
        "trainer.checkpoint_interval=100",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "search" / "search.json").read_text())
    found = [(trial["params"]["optimizer.lr"], trial["status"]) for trial in report["trials"]]
    assert found == [(1e-2, "completed"), (1e-9, "pruned")]
    hopeless = ended(tmp_path / "search")["lr=1e-09"]
    assert hopeless["status"] == "pruned"
    assert "MedianPruner stopped trial 1 because of val/loss" in hopeless["error"]
    assert hopeless["steps"] < 300
    assert report["trials"][1]["objective"] is not None
    assert "to confirm with fresh seeds: python -m lmtrain confirm search" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.lr=interval(0, inf)"], "optimizer.lr=interval(0, inf): has no end"),
        (["optimizer.lr=1"], "nothing to search"),
        (["optimizer.lrr=interval(0, 1)"], "optimizer.lrr=0.0: unknown key; did you mean optimizer.lr?"),
        (["model.dropout=interval(0, 1.5)"], "model.dropout=1.5: input should be less than"),
        (["seed=1,2", "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: input should be greater than 0"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    token_folder: Path, tmp_path: Path, cli: Cli, arguments: list[str], message: str
) -> None:
    done = cli(*SEARCH, *TINY, f"data.path={token_folder}", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "search").exists()


def test_without_optuna_a_search_says_what_to_install(token_folder: Path, tmp_path: Path) -> None:
    script = f"""
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "optuna" else found(name, *rest)
sys.argv = ["lmtrain", *{[*SEARCH, *TINY, "seed=1,2"]!r}]
from lmtrain.__main__ import main
try:
    main()
finally:
    assert "optuna" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    wanted = "config error: hydra/sweeper=optuna: needs Optuna; install it with pip install 'lmtrain[optuna]'\n"
    assert done.stderr == wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["+hydra.sweeper.n_trails=5"], "hydra.sweeper.n_trails=5: unknown key; did you mean hydra.sweeper.n_trials?"),
        (["hydra.sweeper.n_jobs=two"], "hydra.sweeper.n_jobs=two: input should be a valid integer"),
        (
            ["hydra.sweeper.sampler.n_startup_trials=x"],
            "hydra.sweeper.sampler.n_startup_trials=x: input should be a valid integer",
        ),
        (["hydra.sweeper.pruner=asha"], "write a slash: hydra/sweeper/pruner=asha"),
        (["hydra.sweeper.direction=down"], "hydra.sweeper.direction=down: input should be 'minimize' or 'maximize'"),
        (["~trainer.eval_interval", "hydra/sweeper/pruner=asha"], "hydra.sweeper: "),
    ],
)
def test_a_wrong_setting_of_the_search_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_settings(compose(["experiments=search", *arguments], with_hydra=True))
    assert message in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sampler", "pruner"])
def test_each_choice_is_a_class_of_optuna(kind: str) -> None:
    choices = sorted(path.stem for path in (shipped("conf") / "hydra" / "sweeper" / kind).glob("*.yaml"))
    assert len(choices) >= 5
    for choice in choices:
        composed = compose(["experiments=search", f"hydra/sweeper/{kind}={choice}"], with_hydra=True)
        settings, params = read_settings(composed)
        part = getattr(settings, kind)
        assert f"optuna.{kind}s.{type(part).__name__}" == composed.hydra.sweeper[kind]._target_
        assert params["optimizer.lr"].startswith("tag(log")


def test_the_documentation_shows_the_shipped_example() -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "search.md").read_text(encoding="utf-8")
    example = (shipped("experiments") / "search.yaml").read_text(encoding="utf-8")
    assert "`experiments=search`" in page
    lines = [line for line in page.splitlines() if "optimizer.lr: tag(log" in line]
    assert len(lines) == 1
    assert lines[0].strip() in example
