"""Runs are replicates if they computed the same thing, whatever their configs say."""

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from support.synthetic_runs import base_config, write_run

from lmtrain.comparison.run_files import flat_config
from lmtrain.comparison.run_values import final_value
from lmtrain.comparison.runs import differing_keys, load_runs
from lmtrain.comparison.settings import NEUTRAL
from lmtrain.comparison.statistics.replicates import group_numbers, replicate_groups

CPU, CUDA = "cpu (4 threads), float32, eager", "cuda (NVIDIA H100), bfloat16, compiled"


def groups_of(folder: Path, *, timed: bool = False) -> list[int]:
    return group_numbers(load_runs([folder]), timed=timed)


def labels_and_sizes(folder: Path) -> dict[str, int]:
    found, _ = replicate_groups(load_runs([folder]), lambda run: final_value(run, "val/loss"))
    return {group.label: len(group.values) for group in found}


@pytest.mark.parametrize(
    ("changes", "environment"),
    [
        ({"name": "other", "logger.csv._target_": "lmtrain.logger.csv.CsvLogger", "sample_tokens": 7}, {}),
        ({"trainer.log_interval": 7, "trainer.keep_checkpoints": 9, "trainer.keep_every": 50}, {}),
        ({"trainer.checkpoint_interval": 13}, {}),
        ({"trainer.eval_interval": 25}, {}),
        ({"trainer.eval_train_batches": 3}, {}),
        ({"trainer.global_batch_size": 8}, {}),
        ({"trainer.on_bad_step": "skip", "trainer.spike_zscore": 10.0, "trainer.spike_window": 64}, {}),
        ({"system.threads": 3}, {}),
        ({"system.keep_freed_memory": False}, {}),
        ({"system.deterministic": False}, {}),
        ({"system.tf32": False}, {"device": CPU}),
        ({"system.device": "cpu", "system.dtype": "float32", "system.compile": False}, {"device": CPU}),
        ({"scheduler._partial_": None, "prepare": {"source": "other"}}, {}),
        ({"data.path": "/moved"}, {}),
        ({}, {"git": {"commit": "2"}}),
        ({}, {"resumes": [{"changes": ["trainer.eval_interval: 25 → 50", "data.path: a → b", "logger.x: 1 → 2"]}]}),
        ({}, {"resumes": [{"changes": ["trainer.max_steps: 100 → 200"]}]}),  # no schedule depends on it
        ({}, {"resumes": [{"changes": ["data.batch_size: 4 → 8", "trainer.gradient_accumulation_steps: 2 → 1"]}]}),
        ({"trainer.global_batch_size": 8}, {"resumes": [{"changes": ["data.batch_size: 4 → auto"]}]}),
    ],
)
def test_replicates_may_differ_in_what_changes_no_result(
    tmp_path: Path, changes: Mapping[str, Any], environment: Mapping[str, Any]
) -> None:
    write_run(tmp_path / "a", {"seed": 1}, environment={"device": CPU})
    write_run(tmp_path / "b", {"seed": 2, **changes}, environment={"device": CPU, **environment})
    assert groups_of(tmp_path) == [0, 0]
    assert differing_keys(load_runs([tmp_path])) == ["seed"]


@pytest.mark.parametrize(
    ("changes", "environment", "label"),
    [
        ({"data.order": "random"}, {}, "order=random"),
        ({"trainer.max_steps": 250}, {}, "max_steps=250"),
        ({"data.batch_size": 32}, {}, "batch_size=32"),
        ({"system.tf32": False}, {"device": CUDA}, "tf32=false"),
        ({"system.dtype": "bfloat16"}, {"device": "cpu (4 threads), bfloat16, eager"}, "dtype=bfloat16"),
        (
            {"system.compile": "max-autotune"},
            {"device": "cpu (4 threads), float32, compiled max-autotune"},
            "compile=max-autotune",
        ),
        ({}, {"data": {"train": "changed", "val": "9ff2"}}, "data="),
        ({}, {"model": {"parameters": 999}}, "parameters=999"),
        ({}, {"lmtrain_source": "2b2b2b2b"}, "lmtrain=2b2b2b"),
        ({}, {"code": {"model._target_": {"mine": "2"}}}, "code="),
        (
            {},
            {"resumes": [{"changes": ["optimizer.lr: 0.001 → 0.003"], "evaluation": {"after_step": 50}}]},
            "resumed=lr 0.001→0.003 at step 50",
        ),
        (
            {},
            {"resumes": [{"changes": ["trainer.max_steps: 100 → 200", "scheduler.max_steps: 100 → 200"]}]},
            "resumed=max_steps 100→200",
        ),
        ({}, {"resumes": [{"changes": ["model._target_: mine.py changed since step 7"]}]}, "resumed="),
        ({}, {"resumes": [{"changes": ["data.batch_size: 4 → 8"]}]}, "resumed=batch_size 4→8"),
        ({}, {"resumes": [{"changes": [], "lmtrain_source": "2b2b2b2b"}]}, "lmtrain=1a1a1a→2b2b2b"),
    ],
)
def test_runs_that_computed_something_else_are_no_replicates(
    tmp_path: Path, changes: Mapping[str, Any], environment: Mapping[str, Any], label: str
) -> None:
    both = {
        "device": CUDA if CUDA in environment.values() else CPU,
        "lmtrain_source": "1a1a1a1a",
        "code": {"model._target_": {"mine": "1"}},
    }
    write_run(
        tmp_path / "a",
        {"seed": 1},
        environment=both | environment | {"resumes": [], "device": CUDA if CUDA in environment.values() else CPU}
        if "device" in environment
        else both,
    )
    write_run(tmp_path / "b", {"seed": 2, **changes}, environment={**both, **environment})
    assert groups_of(tmp_path) == [0, 1]
    assert label in list(labels_and_sizes(tmp_path))[1]
    assert label in load_runs([tmp_path])[1].label


def test_auto_true_and_the_default_mode_of_compilation_are_the_same(tmp_path: Path) -> None:
    for seed, written in enumerate(["auto", True, "default"]):
        device = "cpu (4 threads), float32, compiled"
        write_run(tmp_path / str(seed), {"seed": seed, "system.compile": written}, environment={"device": device})
    assert groups_of(tmp_path) == [0, 0, 0]


def test_equal_contents_at_two_paths_are_the_same_data(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"seed": 1, "data.path": "/one"})
    write_run(tmp_path / "b", {"seed": 2, "data.path": "/two"})
    write_run(tmp_path / "c", {"seed": 3, "data.path": "/three"}, environment={"data": {"train": "other"}})
    write_run(tmp_path / "d", {"seed": 4, "data.path": "/two"}, environment={"data": None})  # as `b` at that path
    write_run(tmp_path / "e", {"seed": 5, "data.path": "/four"}, environment={"data": None})
    assert groups_of(tmp_path) == [0, 0, 1, 0, 2]
    assert list(labels_and_sizes(tmp_path)) == ["path=/one", "path=/three", "path=/four"]


def test_the_datasets_of_a_mixture_may_move(tmp_path: Path) -> None:
    for number, place in enumerate(("/one", "/two")):
        changes = {"data.path": None, "data.paths.books": place, "data.paths.code": "/c", "seed": number}
        write_run(tmp_path / str(number), changes)
    assert groups_of(tmp_path) == [0, 0]


def test_a_bad_step_makes_its_policy_a_setting_of_all_seeds(tmp_path: Path) -> None:
    """Not only of the run that had it: which run has a bad step depends on the seed."""
    for seed in (1, 2, 3):
        write_run(tmp_path / f"stop{seed}", {"seed": seed})
        write_run(tmp_path / f"skip{seed}", {"seed": seed, "trainer.on_bad_step": "skip"}, bad_steps=int(seed == 2))
        write_run(tmp_path / f"other{seed}", {"seed": seed, "optimizer.lr": 1e-2, "trainer.on_bad_step": "skip"})
    assert labels_and_sizes(tmp_path) == {
        "lr=0.01": 3,
        "lr=0.003 on_bad_step=skip": 3,
        "lr=0.003 on_bad_step=stop": 3,
    }


def test_only_a_rewind_depends_on_the_checkpoints(tmp_path: Path) -> None:
    for seed, bad in ((1, 0), (2, 1)):
        for interval in (50, 100):
            changes = {"seed": seed, "trainer.on_bad_step": "rewind", "trainer.checkpoint_interval": interval}
            write_run(tmp_path / f"{interval}-{seed}", changes, bad_steps=bad)
    assert groups_of(tmp_path) == [0, 0, 1, 1]


def test_the_cut_of_a_global_batch_is_no_setting(tmp_path: Path) -> None:
    cuts = [(8, 4), (16, 2), (32, 2)]
    for seed, (size, number) in enumerate(cuts):
        changes = {"data.batch_size": size, "trainer.gradient_accumulation_steps": number, "trainer.eval_batches": None}
        write_run(tmp_path / str(seed), {"seed": seed, **changes})
    assert groups_of(tmp_path) == [0, 0, 1]
    assert list(labels_and_sizes(tmp_path)) == ["global_batch=32", "global_batch=64"]
    assert groups_of(tmp_path, timed=True) == [0, 1, 2]


def test_sizes_that_runs_found_by_themselves_are_no_setting(tmp_path: Path) -> None:
    named = {"data.batch_size": 8, "trainer.gradient_accumulation_steps": 4, "trainer.eval_batches": None}
    write_run(tmp_path / "0", {"seed": 0, **named})
    for seed, (size, number) in enumerate([(8, 4), (16, 2)], 1):
        changes = {"data.batch_size": size, "trainer.gradient_accumulation_steps": number}
        write_run(tmp_path / str(seed), {"seed": seed, **named, **changes, "trainer.global_batch_size": 32})
    assert groups_of(tmp_path) == [0, 0, 0]


def test_a_model_of_the_user_may_depend_on_its_micro_batch(tmp_path: Path) -> None:
    for seed, (size, number) in enumerate([(8, 4), (16, 2)]):
        changes = {"data.batch_size": size, "trainer.gradient_accumulation_steps": number, "model._target_": "mine.Net"}
        write_run(tmp_path / str(seed), {"seed": seed, **changes})
    assert groups_of(tmp_path) == [0, 1]


def test_auto_that_became_another_device_is_noted(tmp_path: Path) -> None:
    for seed, device in enumerate((CPU, CPU, CUDA)):
        write_run(tmp_path / str(seed), {"seed": seed}, environment={"device": device})
    found, remarks = replicate_groups(load_runs([tmp_path]), lambda run: final_value(run, "val/loss"))
    notes = [note.text for note in remarks]
    assert [len(group.values) for group in found] == [3]
    assert "all runs: system.device became cpu (2 runs) and cuda (1 run); the runs still count as one setting" in notes
    assert any("system.dtype became float32 (2 runs) and bfloat16 (1 run)" in note for note in notes)


def test_what_changes_only_the_time_counts_where_times_are_compared(tmp_path: Path) -> None:
    for seed, threads in enumerate((1, 1, 2)):
        write_run(tmp_path / str(seed), {"seed": seed, "system.threads": threads}, environment={"device": CPU})
    assert groups_of(tmp_path) == [0, 0, 0]
    assert groups_of(tmp_path, timed=True) == [0, 0, 1]


def test_runs_that_differ_only_in_speed_are_named_by_that(tmp_path: Path) -> None:
    for threads in (1, 2):
        write_run(tmp_path / str(threads), {"seed": 1, "system.threads": threads})
    write_run(tmp_path / "3", {"seed": 2})
    assert [run.label for run in load_runs([tmp_path])] == ["seed=1 threads=1", "seed=1 threads=2", "seed=2"]


def test_runs_are_named_by_what_differs_among_the_completed_ones(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / str(seed), {"seed": seed})
    write_run(tmp_path / "x", {"seed": 1, "optimizer.lr": 1.0, "model.dropout": 0.5}, status="diverged")
    labels = [run.label for run in load_runs([tmp_path])]
    assert labels == ["seed=1", "seed=2", "dropout=0.5 lr=1 seed=1"]
    found, _ = replicate_groups(load_runs([tmp_path]), lambda run: math.nan if run.status == "diverged" else 3.0)
    assert [(group.label, len(group.values), group.diverged) for group in found] == [
        ("dropout=0 lr=0.003", 2, ()),
        ("dropout=0.5 lr=1", 0, (1,)),
    ]


def test_every_neutral_key_exists() -> None:
    """A rule for a key that was renamed would do nothing."""
    keys = [*flat_config(base_config()), "logger.csv", "prepare.source", "x._convert_", "x._recursive_"]
    for name in (name for rule in NEUTRAL for name in rule.keys):
        assert any(fnmatchcase(key, name) for key in keys), name


@pytest.mark.parametrize(("target", "groups"), [("lmtrain.model.llama.Llama", [0, 0]), ("mine.Net", [0, 1])])
def test_the_kernel_of_attention_of_a_shipped_model_makes_no_setting(
    tmp_path: Path, target: str, groups: list[int]
) -> None:
    own = {"model._target_": target}
    write_run(tmp_path / "a", {"seed": 1, **own})
    write_run(tmp_path / "b", {"seed": 2, **own, "model.attention": "math", "model.recompute": "layer"})
    assert groups_of(tmp_path) == groups
