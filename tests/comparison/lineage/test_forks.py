"""A fork counts for the run at which its line of parents begins."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.synthetic_runs import write_run

from lmtrain.comparison.run_comparison import compare
from lmtrain.comparison.run_values import final_value
from lmtrain.comparison.runs import ComparedRun, load_runs
from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.replicates import replicate_groups


def write_fork(folder: Path, parent: Path, changes: dict[str, Any], *, step: int = 100, **options: Any) -> Path:
    """Write a fork as lmtrain records it, with the parent's config unless a change says otherwise."""
    record = json.loads((parent / "environment.json").read_text())
    config = options.pop("config", None)
    origin = {"run": str(parent), "run_id": record["run_id"], "step": step, "config": config}
    origin |= {"forked_from": record.get("forked_from")}
    changes = {"fork": str(parent), "step": step, **changes}
    return write_run(folder, changes, first_step=step, environment={"forked_from": origin}, **options)


def groups_of(*folders: Path) -> tuple[dict[str, ReplicateGroup], list[str]]:
    found, notes = replicate_groups(load_runs(folders), lambda run: final_value(run, "val/loss"))
    return {group.label: group for group in found}, [note.text for note in notes]


def test_five_forks_of_a_run_are_one_value(tmp_path: Path) -> None:
    for lr in (1e-3, 3e-3):
        parent = write_run(tmp_path / f"{lr}", {"optimizer.lr": lr, "seed": 1})
        for seed in range(5):
            loss = 3 + 10 * lr + 1e-3 * seed
            write_fork(tmp_path / f"{lr}-{seed}", parent, {"optimizer.lr": 1e-4, "seed": seed}, final_loss=loss)
    found, notes = groups_of(*(tmp_path / f"{lr}-{seed}" for lr in (1e-3, 3e-3) for seed in range(5)), tmp_path)
    assert {label: len(group.values) for label, group in found.items()} == {
        "lr=0.0001 from lr=0.001 at step 100": 1,
        "lr=0.0001 from lr=0.003 at step 100": 1,
        "lr=0.001": 1,
        "lr=0.003": 1,
    }
    forks = found["lr=0.0001 from lr=0.001 at step 100"]
    assert forks.values == {1: pytest.approx(3.012)}
    assert (
        "lr=0.0001 from lr=0.001 at step 100: 5 forks of one run count as one: they share its first 100 steps; "
        "for more values, train the parent with several seeds, and fork each"
    ) in notes
    sentences = compare(load_runs([tmp_path])).conclusions.sentences
    assert not any("is better than" in sentence for sentence in sentences)


def test_a_fork_shares_its_block_with_its_parent_and_its_siblings(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        parent = write_run(tmp_path / f"p{seed}", {"seed": seed})
        write_fork(tmp_path / f"a{seed}", parent, {"seed": 7, "optimizer.lr": 1e-4})
        write_fork(tmp_path / f"b{seed}", parent, {"seed": 8, "optimizer.lr": 1e-4, "data.order": "random"})
        write_run(tmp_path / f"other{seed}", {"seed": seed, "model.n_layer": 9})
    found, _ = groups_of(tmp_path)
    forks = [group for label, group in found.items() if "from" in label or "forked" in label]
    (parents,) = [group for label, group in found.items() if "n_layer=9" not in label and group not in forks]
    assert len(forks) == 2
    for group in forks:
        assert group.values.keys() == parents.values.keys() == {1, 2, 3}
        assert group.start == parents.start
    (other,) = [group for label, group in found.items() if "n_layer=9" in label]
    assert other.start != parents.start


def test_a_line_of_forks_is_followed_to_its_trunk(tmp_path: Path) -> None:
    trunk = write_run(tmp_path / "trunk", {"seed": 5, "optimizer.lr": 1e-2})
    for number in (1, 2):
        middle = write_fork(tmp_path / f"middle{number}", trunk, {"seed": 10 + number}, step=50)
        write_fork(tmp_path / f"leaf{number}", middle, {"seed": 20 + number}, step=150)
    runs = {run.path.name: run for run in load_runs([tmp_path])}
    leaves = [runs["leaf1"].branch, runs["leaf2"].branch]
    assert all(branch is not None for branch in leaves)
    assert {(branch.trunk, branch.unit, branch.step, branch.shared_steps) for branch in leaves if branch} == {
        ("trunk", 5, 150, 50)
    }
    found, notes = groups_of(tmp_path)
    assert sorted(len(group.values) for group in found.values()) == [1, 1, 1]
    assert sum("2 forks of one run count as one: they share its first 50 steps" in note for note in notes) == 2


@pytest.mark.parametrize("known", ["recorded", "on disk", "no longer"])
def test_the_trunk_counts_although_it_is_not_compared(
    tmp_path: Path, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for lr in (1e-3, 3e-3):
        parent = write_run(tmp_path / "parents" / f"{lr}", {"optimizer.lr": lr, "seed": 1})
        config = yaml.safe_load((parent / "config.yaml").read_text()) if known == "recorded" else None
        for seed in (1, 2, 3):
            folder = tmp_path / "forks" / f"{lr}-{seed}"
            write_fork(folder, parent, {"optimizer.lr": 1e-4, "seed": seed}, config=config)
    if known != "on disk":
        shutil.rmtree(tmp_path / "parents")
    found, notes = groups_of(tmp_path / "forks")
    assert [len(group.values) for group in found.values()] == [1, 1]
    assert sum("3 forks of one run count as one" in note for note in notes) == 2
    if known == "no longer":
        assert [label.startswith(f"from {tmp_path}/parents/0.00") for label in found] == [True, True]
    else:
        assert list(found) == ["from lr=0.001 at step 100", "from lr=0.003 at step 100"]
        assert [set(group.values) for group in found.values()] == [{1}, {1}]


def test_forks_of_several_lost_parents_are_told_apart_by_their_seed(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        parent = write_run(tmp_path / "parents" / f"{seed}", {"seed": seed})
        write_fork(tmp_path / "forks" / f"{seed}", parent, {"seed": seed})
    shutil.rmtree(tmp_path / "parents")
    runs = load_runs([tmp_path / "forks"])
    assert [run.branch and run.branch.unit for run in runs] == [1, 2, 3]


def test_a_later_resume_of_the_parent_does_not_change_its_forks(tmp_path: Path) -> None:
    parent = write_run(tmp_path / "p", {"seed": 1})
    config = yaml.safe_load((parent / "config.yaml").read_text())
    write_fork(tmp_path / "f1", parent, {"seed": 2}, config=config)
    record = json.loads((parent / "environment.json").read_text())
    record["resumes"] = [{"changes": ["optimizer.lr: 0.003 → 0.001"]}]
    (parent / "environment.json").write_text(json.dumps(record))
    write_fork(tmp_path / "f2", parent, {"seed": 3}, config=config)
    one, two = (run.branch for run in load_runs([tmp_path / "f1", tmp_path / "f2", parent])[:2])
    assert one is not None
    assert two is not None
    assert one.key == two.key


def test_a_diverged_fork_is_its_trunks(tmp_path: Path) -> None:
    """The mean of the forks that survived would look too good."""
    for seed in (1, 2):
        parent = write_run(tmp_path / f"p{seed}", {"seed": seed})
        for number in (1, 2):
            status = "diverged" if (seed, number) == (2, 2) else "completed"
            write_fork(tmp_path / f"f{seed}{number}", parent, {"seed": 10 * number, "optimizer.lr": 0.1}, status=status)
    value: Callable[[ComparedRun], float] = lambda run: math.nan if run.status == "diverged" else 3.0  # noqa: E731
    found, _ = replicate_groups(load_runs([tmp_path]), value)
    (forks,) = [group for group in found if "from" in group.label or "forked" in group.label]
    assert (forks.values, forks.diverged) == ({1: 3.0}, (2,))


def test_forks_are_named_by_their_parents_where_their_own_settings_are_equal(tmp_path: Path) -> None:
    for seed in (1, 2):
        parent = write_run(tmp_path / f"p{seed}", {"seed": seed})
        write_fork(tmp_path / f"f{seed}", parent, {"seed": 7, "optimizer.lr": 1e-4})
    assert [run.label for run in load_runs([tmp_path])][:2] == [
        "lr=0.0001 seed=7 from lr=0.003 seed=1 at step 100",
        "lr=0.0001 seed=7 from lr=0.003 seed=2 at step 100",
    ]


@pytest.mark.parametrize("links", [{"a": "b", "b": "a"}, {"a": "a"}])
def test_forks_that_name_each_other_in_a_circle_are_loaded(tmp_path: Path, links: dict[str, str]) -> None:
    for name, parent in links.items():
        origin = {"run": str(tmp_path / parent), "run_id": parent, "step": 1}
        write_run(tmp_path / name, {"seed": 1}, environment={"forked_from": origin})
    assert len(load_runs([tmp_path])) == len(links)


def test_a_parent_outside_the_given_folders_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    parent = write_run(tmp_path / "private", {"optimizer.lr": 0.5, "seed": 1})
    write_fork(tmp_path / "here" / "fork", parent, {"seed": 2})
    (run,) = load_runs(["."])
    assert run.branch is not None
    assert (run.branch.parent_setting, run.branch.unit) == ({}, 2)


def test_forks_of_two_equal_settings_give_no_false_verdicts(tmp_path: Path) -> None:
    """Two settings of three trunks with four forks each; the forks of a trunk vary little, the trunks much."""
    random = np.random.default_rng(0)
    for lr in (1e-3, 3e-3):
        for seed in (1, 2, 3):
            of_trunk = random.normal(3, 0.1)
            start = {"optimizer.lr": lr, "seed": seed}
            parent = write_run(tmp_path / f"{lr}-{seed}", start, final_loss=of_trunk + 0.1, log_interval=50)
            for number in range(4):
                loss = of_trunk + random.normal(0, 0.001)
                folder = tmp_path / "forks" / f"{lr}-{seed}-{number}"
                changes = {"optimizer.lr": 1e-4, "seed": number}
                write_fork(folder, parent, changes, final_loss=loss, log_interval=50)
    comparison = compare(load_runs([tmp_path]))
    assert [len(group.values) for group in comparison.conclusions.groups] == [3, 3, 3, 3]
    assert not any("better" in sentence for sentence in comparison.conclusions.sentences)
