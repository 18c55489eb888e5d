"""Runs are found, read and named from their files alone, even if the files are damaged, hostile or unfinished."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.command_line import Cli
from support.synthetic_runs import PARAMETERS, STEP_TOKENS, write_run, write_sweep
from support.tokens import TINY, write_tokens

from lmtrain.comparison.columns import available_columns
from lmtrain.comparison.run_comparison import compare
from lmtrain.comparison.run_values import best_value, default_goal, equal_places, final_value, value_at, when_reached
from lmtrain.comparison.runs import ComparedRun, differing_keys, load_runs
from lmtrain.comparison.statistics.replicates import repeated_runs, replicate_groups
from lmtrain.run.directory import RunDirectory


def values_at_step(runs: list[ComparedRun]) -> Callable[[ComparedRun], float]:
    place = equal_places(runs, "val/loss")["step"]
    return lambda run: value_at(run, "val/loss", place)


def test_runs_are_found_in_folders_globs_and_sweeps_each_once(tmp_path: Path) -> None:
    write_sweep(tmp_path / "outputs" / "sweep", 11, seeds=1)
    write_run(tmp_path / "outputs" / "alone")
    (tmp_path / "outputs" / "link").symlink_to(tmp_path / "outputs" / "sweep")
    runs = load_runs([tmp_path / "outputs"])
    assert [run.path.name for run in runs] == ["alone", *map(str, range(11))]
    assert len(load_runs([f"{tmp_path}/outputs/sweep/[12]", tmp_path / "outputs" / "sweep" / "1"])) == 2
    with pytest.raises(ValueError, match="no such file"):
        load_runs([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no runs found"):
        load_runs([tmp_path / "empty"])


@pytest.mark.parametrize("name", ["sample.txt", "config.yaml", "metrics.jsonl", "result.json", "environment.json"])
def test_a_run_with_a_linked_file_is_left_out(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b")
    write_run(tmp_path / "mine")
    (tmp_path / "mine" / "sample.txt").write_text("a secret")
    (tmp_path / "runs" / "a" / name).unlink(missing_ok=True)
    (tmp_path / "runs" / "a" / name).symlink_to(tmp_path / "mine" / name)
    warnings: list[str] = []
    assert [run.path.name for run in load_runs([tmp_path / "runs"], warnings.append)] == ["b"]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"left out: {tmp_path}/runs/a/{name}: a link")


def test_a_run_has_its_config_and_metrics(tmp_path: Path) -> None:
    write_run(tmp_path / "a", steps=100, log_interval=10)
    (run,) = load_runs([tmp_path])
    assert run.steps == 100
    assert run.parameters == PARAMETERS
    assert run.config["optimizer.betas"] == [0.9, 0.95]
    steps, losses = run.series("val/loss")
    assert steps.tolist() == [50, 100]
    assert losses[-1] == pytest.approx(3.0)
    assert run.series("val/loss", "flops")[0].tolist() == [6 * PARAMETERS * STEP_TOKENS * step for step in (50, 100)]
    assert np.isnan(run.metrics["val/loss"][0])
    assert len(run.series("no/such")[0]) == 0


def test_labels_have_only_the_settings_that_differ(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"optimizer.lr": 1e-3, "seed": 1, "name": "x", "trainer.log_interval": 5})
    write_run(tmp_path / "b", {"optimizer.lr": 3e-3, "seed": 2, "model.dropout": 0.1})
    write_run(tmp_path / "c", {"optimizer.lr": 3e-3, "seed": 2, "model.dropout": 0.1})
    runs = load_runs([tmp_path])
    assert differing_keys(runs) == ["model.dropout", "optimizer.lr", "seed"]  # scheduler.lr only repeats optimizer.lr
    assert [run.label for run in runs] == [
        "dropout=0 lr=0.001 seed=1",
        "dropout=0.1 lr=0.003 seed=2 (b)",
        "dropout=0.1 lr=0.003 seed=2 (c)",
    ]


def test_the_path_of_equal_data_is_no_difference(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", {"data.path": "/other/place"})
    assert differing_keys(load_runs([tmp_path])) == []
    write_run(tmp_path / "c", {"data.path": "/third"}, environment={"data": {"train": "other"}})
    assert differing_keys(load_runs([tmp_path])) == ["data.path"]


def test_long_labels_keep_rare_values(tmp_path: Path) -> None:
    place = "/a/long/way/to/the/data/of/the/others"
    for number, lr in enumerate([1e-3, 2e-3, 4e-3, 8e-3]):
        changes = {"optimizer.lr": lr, "data.path": place, "data.order": "sequential" if number else "random"}
        write_run(tmp_path / str(number), changes, environment={"data": {"train": f"{number}"}})
    write_run(tmp_path / "9", {"data.path": "/b", "optimizer.lr": 1e-3}, environment={"data": {"train": "9"}})
    labels = [run.label for run in load_runs([tmp_path])]
    assert all(len(label) < 60 for label in labels)
    assert "lr=0.008" in labels[3]


def test_a_running_run_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    write_run(tmp_path / "a", status=None)
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 201, "train/lo')
    warnings: list[str] = []
    with RunDirectory(tmp_path / "a"):
        (run,) = load_runs([tmp_path], warnings.append)
    assert (run.status, run.steps, warnings) == ("running", 200, [])
    assert load_runs([tmp_path])[0].status == "unfinished"


def test_a_run_without_metrics_is_loaded(tmp_path: Path) -> None:
    write_run(tmp_path / "a", status=None)
    (tmp_path / "a" / "metrics.jsonl").unlink()
    (run,) = load_runs([tmp_path])
    assert run.steps == 0
    assert len(run.series("val/loss")[0]) == 0
    assert math.isnan(best_value(run, "val/loss")[0])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.yaml", b"a: [" * 5000),
        ("config.yaml", b"- " * 400_000),
        ("config.yaml", b"a: &a [1]\nb: *a\n"),
        ("config.yaml", b"seed: !!python/object/apply:os.system [exit]\n"),
        ("config.yaml", b"\xff\xfe\x00"),
        ("config.yaml", b"x: " + b"y" * 1_100_000),
        ("config.yaml", b""),
        ("environment.json", b"[" * 100_000),
        ("result.json", b'{"status": "completed", '),
    ],
)
def test_a_run_with_a_damaged_or_hostile_file_is_left_out_with_a_warning(
    tmp_path: Path, file: str, content: bytes
) -> None:
    write_run(tmp_path / "bad")
    write_run(tmp_path / "good")
    (tmp_path / "bad" / file).write_bytes(content)
    warnings: list[str] = []
    assert [run.path.name for run in load_runs([tmp_path], warnings.append)] == ["good"]
    assert len(warnings) == 1
    assert str(tmp_path / "bad" / file) in warnings[0]


def test_a_run_with_damaged_parts_keeps_the_rest(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join(lines[:60]) + b'{"step": "x"}\n' + b"".join(lines[60:]))
    (folder / "result.json").write_text('{"status": "\\u001b[31mfine", "best_val_loss": "?"}')
    (folder / "sample.txt").mkdir()
    warnings: list[str] = []
    (run,) = load_runs([tmp_path], warnings.append)
    assert run.steps == 200
    assert "line 61 is not a line of metrics" in warnings[0]
    assert "\x1b" not in run.status
    assert run.sample is None


def test_a_named_pipe_in_place_of_the_metrics_does_not_block(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "metrics.jsonl").unlink()
    os.mkfifo(folder / "metrics.jsonl")
    assert len(load_runs([tmp_path])[0].metrics["step"]) == 0


def test_a_step_logged_twice_counts_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", steps=4, eval_interval=1)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    again = json.dumps({**json.loads(lines[1]), "val/loss": 1.5}) + "\n"
    (folder / "metrics.jsonl").write_text("".join([*lines, again]))
    (run,) = load_runs([tmp_path])
    steps, losses = run.series("val/loss")
    assert steps.tolist() == [1, 2, 3, 4]
    assert losses[1] == 1.5


def test_runs_are_compared_at_a_place_that_all_completed_runs_reached(tmp_path: Path) -> None:
    write_run(tmp_path / "a", steps=200)
    write_run(tmp_path / "b", steps=300, speed=2.0)
    write_run(tmp_path / "c", steps=80, status="diverged")
    runs = load_runs([tmp_path])
    places = equal_places(runs, "val/loss")
    assert (places["step"].place, places["step"].exact) == (200, True)
    assert (places["seconds"].place, places["seconds"].exact) == (75, True)
    assert value_at(runs[0], "val/loss", places["step"]) == pytest.approx(3.0)
    assert math.isnan(value_at(runs[2], "val/loss", places["step"]))
    xs, ys = runs[0].series("val/loss", "seconds")  # evaluated after 50 s and 75 s
    assert value_at(runs[0], "val/loss", places["seconds"]) == ys[xs == 75]
    between = equal_places(runs, "val/loss", at_step=125)["step"]
    assert not between.exact
    share = np.log(125 / 100) / np.log(150 / 100)
    assert value_at(runs[0], "val/loss", between) == pytest.approx((1 - share) * ys[1] + share * ys[2])


def test_a_few_short_runs_do_not_decide_where_all_are_compared(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"short{seed}", {"seed": seed}, steps=3, eval_interval=3)
    for seed in range(6):
        write_run(tmp_path / f"long{seed}", {"seed": seed}, steps=40, eval_interval=10)
    runs = load_runs([tmp_path])
    assert equal_places(runs, "val/loss")["step"].place == 3  # one in three runs is too many to ignore
    (note,) = [note.text for note in compare(runs).notes if note.kind == "evaluated later"]
    assert "compared at step 3 because of max_steps=3 seed=0" in note
    assert "6 of 9 completed runs were first evaluated later; --at-step 40 or" in note
    write_run(tmp_path / "long6", {"seed": 6}, steps=40, eval_interval=10)
    runs = load_runs([tmp_path])
    assert equal_places(runs, "val/loss")["step"].place == 40
    (note,) = [note.text for note in compare(runs).notes if note.kind == "shorter"]
    assert "3 of 10 completed runs end before step 40" in note
    assert not [note for note in compare(runs, at_step=40).notes if note.kind == "shorter"]


def test_a_diverged_run_has_the_steps_of_its_result(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", steps=30, status="diverged")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0])  # it diverged before the next line was due
    (run,) = load_runs([tmp_path])
    columns = available_columns([run], "val/loss", {})
    assert run.steps == 30
    assert columns["tokens"].value(run) == 30 * STEP_TOKENS
    assert columns["flops"].value(run) == 30 * STEP_TOKENS * 6 * PARAMETERS


def test_a_goal_is_reached_at_the_first_evaluation_as_good(tmp_path: Path) -> None:
    write_run(tmp_path / "a", steps=200)
    (run,) = load_runs([tmp_path])
    losses = run.series("val/loss")[1]
    assert when_reached(run, "val/loss", losses[1]) == {
        "step": 100,
        "tokens": 100 * STEP_TOKENS,
        "flops": 6 * PARAMETERS * 100 * STEP_TOKENS,
        "seconds": 50,
    }
    assert when_reached(run, "val/loss", 2.9) is None
    assert default_goal([run], "val/loss") == final_value(run, "val/loss")


def test_replicates_differ_only_in_the_seed(tmp_path: Path) -> None:
    for lr in (1e-3, 2e-3):
        for seed in (1, 2, 3):
            write_run(tmp_path / f"{lr}-{seed}", {"optimizer.lr": lr, "seed": seed}, final_loss=3 + lr + seed / 100)
    write_run(
        tmp_path / "bad", {"optimizer.lr": 2e-3, "seed": 4, "trainer.max_steps": 200}, steps=20, status="diverged"
    )
    write_run(tmp_path / "live", {"optimizer.lr": 2e-3, "seed": 5, "trainer.max_steps": 200}, steps=20, status=None)
    runs = load_runs([tmp_path])
    found, notes = replicate_groups(runs, values_at_step(runs))
    assert [(group.label, len(group.values), len(group.diverged)) for group in found] == [
        ("lr=0.001", 3, 0),
        ("lr=0.002", 3, 1),
    ]
    assert found[0].sample == pytest.approx([3.011, 3.021, 3.031])
    texts = [note.text for note in notes]
    assert "not in the means: 1 diverged (lr=0.002 seed=4): DivergedError: the loss is diverged" in texts
    assert "not in the means: 1 unfinished (lr=0.002 seed=5)" in texts
    assert any("1 of 5 seeds diverged" in text for text in texts)


def test_a_repeated_run_counts_as_one_value_and_is_reported(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"seed": 1})
    write_run(tmp_path / "b", {"seed": 1, "name": "again"}, speed=3.0)
    write_run(tmp_path / "c", {"seed": 2}, final_loss=3.1)
    runs = load_runs([tmp_path])
    (group,), _ = replicate_groups(runs, values_at_step(runs))
    assert len(group.values) == 2
    line = repeated_runs(runs)[0].text
    assert "seed=1 (a); seed=1 (b)" in line
    assert line.endswith("bit-identical at every step that they share")
    write_run(tmp_path / "d", {"seed": 2}, final_loss=3.1000001)
    assert "different from step 1 on (train/loss" in repeated_runs(load_runs([tmp_path]))[1].text


def test_many_repeated_runs_share_one_note(tmp_path: Path) -> None:
    for seed in range(4):
        for name in "ab":
            write_run(tmp_path / f"{name}{seed}", {"seed": seed}, steps=20, eval_interval=10)
    (note,) = repeated_runs(load_runs([tmp_path]))
    assert "bit-identical" in note.text
    assert "; the same holds for 3 more repeated runs: seed=1 (a1); seed=2 (a2); seed=3 (a3)" in note.text
    assert len(note.runs) == 8


def test_forks_of_replicates_are_replicates_and_name_their_parents(tmp_path: Path) -> None:
    for seed in (1, 2):
        parent = write_run(tmp_path / f"p{seed}", {"seed": seed})
        origin = {"forked_from": {"run_id": f"p{seed}", "run": str(parent), "step": 100}}
        changes = {"seed": seed, "fork": str(parent), "step": 100, "optimizer.lr": 1e-4}
        write_run(tmp_path / f"f{seed}", changes, first_step=100, final_loss=2.9 + seed / 100, environment=origin)
    elsewhere = {"fork": "outputs/gone", "step": None, "seed": 3}
    write_run(tmp_path / "z", elsewhere, environment={"rerun_of": {"run": "x"}})
    runs = {run.path.name: run for run in load_runs([tmp_path])}
    assert runs["f1"].parent == "from lr=0.003 seed=1 at step 100"
    assert runs["z"].parent == "from outputs/gone"
    assert runs["f2"].metrics["step"][0] == 101
    found, _ = replicate_groups(list(runs.values()), lambda run: final_value(run, "val/loss"))
    assert {group.label: len(group.values) for group in found} == {
        "lr=0.0001 from lr=0.003 at step 100": 2,
        "lr=0.003": 2,
        "lr=0.003 from outputs/gone": 1,
    }


def test_a_thousand_runs_load_in_seconds(tmp_path: Path) -> None:
    """Measure a hundred runs; `python tests/support/synthetic_runs.py FOLDER 1000` measures a thousand."""
    write_sweep(tmp_path / "sweep", 100)
    began = time.process_time()
    assert len(load_runs([tmp_path])) == 100
    assert time.process_time() - began < 4  # 0.3 s on an idle core


@pytest.mark.slow
def test_synthetic_runs_have_the_files_of_real_ones(tmp_path: Path, cli: Cli) -> None:
    write_tokens(tmp_path / "data" / "tiny")
    for seed in (1, 2):
        done = cli(*TINY, "data.path=data/tiny", f"seed={seed}", f"hydra.run.dir=outputs/{seed}")
        assert done.returncode == 0, done.stderr
    real = load_runs([tmp_path / "outputs"])
    (made,) = load_runs([write_run(tmp_path / "made")])
    assert made.metrics.keys() == real[0].metrics.keys()
    assert made.config.keys() == real[0].config.keys()
    assert made.result.keys() == real[0].result.keys()
    assert made.environment.keys() <= real[0].environment.keys()
    assert [run.label for run in real] == ["seed=1", "seed=2"]
    shown = cli("compare", "outputs", "--sort", "-seed", "--csv", "table.csv")
    assert shown.returncode == 0, shown.stderr
    assert "the same for all: completed, steps 12" in shown.stdout
    assert "one setting, 2 seeds: the noise between seeds is" in shown.stdout
    rows = (tmp_path / "table.csv").read_text().splitlines()
    assert rows[0].startswith(
        "run,path,label,seed,parent,step of the branch,status,steps,tokens,FLOPs,seconds,host,device,parameters,"
        "val/loss at step 12"
    )
    assert [row.split(",")[0] for row in rows[1:]] == ["2", "1"]


def test_a_value_under_two_keys_is_shown_under_the_key_that_users_set(tmp_path: Path) -> None:
    for steps in (50, 100):
        write_run(tmp_path / str(steps), {"optimizer.lr": steps / 1e4}, steps=steps)
    assert differing_keys(load_runs([tmp_path])) == ["optimizer.lr", "trainer.max_steps"]


def test_a_named_pipe_in_place_of_the_lock_does_not_block(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", status=None)
    os.mkfifo(run / ".lock")
    (found,) = load_runs([run])
    assert found.status == "unfinished"
