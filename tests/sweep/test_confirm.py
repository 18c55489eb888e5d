"""The winners of a sweep are run again as a user does it, with fresh seeds, also after a kill."""

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Cli
from support.synthetic_runs import write_run
from support.tokens import TINY

from lmtrain.comparison.runs import load_runs
from lmtrain.errors import ConfigError
from lmtrain.sweep.confirm import plan_confirmation, rank_settings, write_plan

RATES = {"1e-2": 3.0, "1e-3": 3.2, "1e-4": 3.4}


def write_sweep(folder: Path, seeds: tuple[int, ...] = (1, 2)) -> Path:
    for rate, loss in RATES.items():
        for seed in seeds:
            changes = {"optimizer.lr": float(rate), "seed": seed}
            write_run(folder / f"lr={rate},seed={seed}", changes, final_loss=loss + 0.01 * seed)
    return folder


def names(plan: Any) -> list[str]:
    return [one.run.name.partition(",")[0] for one in plan.picked]


def test_settings_are_ranked_by_the_mean_of_their_runs(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    ranked = rank_settings(load_runs([sweep]), maximizes=False)
    assert [one.title for one in ranked] == ["lr=0.01", "lr=0.001", "lr=0.0001"]
    assert [one.objective for one in ranked] == pytest.approx([3.015, 3.215, 3.415])
    assert rank_settings(load_runs([sweep]), maximizes=True) == ranked[::-1]


def test_a_setting_of_which_a_run_diverged_is_no_winner(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    write_run(sweep / "x", {"optimizer.lr": 1e-2, "seed": 3}, status="diverged")
    _, plan, _ = plan_confirmation([sweep], None, top=1, seeds=2)
    assert names(plan) == ["lr=1e-3"]


def test_the_seeds_are_fresh_also_after_an_earlier_confirmation(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", (1, 7))
    folder, plan, known = plan_confirmation([sweep], None, top=2, seeds=3)
    assert (folder, known) == (sweep / "confirm", False)
    assert (plan.seeds, names(plan), plan.out_of) == ((8, 9, 10), ["lr=1e-2", "lr=1e-3"], 3)
    write_plan(folder, plan)
    _, second, _ = plan_confirmation([sweep], sweep / "again", top=2, seeds=3)
    assert second.seeds == (11, 12, 13)


def test_a_plan_does_not_change_when_the_sweep_has_more_runs_or_other_numbers_are_given(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    folder, plan, _ = plan_confirmation([sweep], None, top=2, seeds=3)
    write_plan(folder, plan)
    with pytest.raises(ConfigError, match="another process has just planned it"):
        write_plan(folder, plan)
    write_run(sweep / "better", {"optimizer.lr": 2e-2, "seed": 9}, final_loss=2.0)
    assert plan_confirmation([sweep], None, top=2, seeds=3) == (folder, plan, True)
    with pytest.raises(ConfigError, match="was planned with 2 settings and 3 seeds"):
        plan_confirmation([sweep], None, top=2, seeds=5)
    (folder / "confirm.json").write_text('{"seeds": ["1"], "out_of": 3, "settings": [{}]}')
    with pytest.raises(ConfigError, match="not a plan that lmtrain wrote"):
        plan_confirmation([sweep], None, top=2, seeds=3)


def test_a_run_that_is_given_is_run_again_beside_the_winners(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    baseline = write_run(tmp_path / "baseline", {"optimizer.lr": 5e-3, "seed": 20})
    _, plan, _ = plan_confirmation([sweep, baseline], None, top=1, seeds=2)
    assert [one.run for one in plan.picked] == [sweep / "lr=1e-2,seed=1", baseline]
    assert plan.seeds == (21, 22)


def test_a_run_without_an_objective_can_be_given(tmp_path: Path) -> None:
    failed = write_run(tmp_path / "baseline", {"seed": 20}, status="failed")
    result = json.loads((failed / "result.json").read_text()) | {"objective": None}
    (failed / "result.json").write_text(json.dumps(result))
    folder, plan, _ = plan_confirmation([failed], tmp_path / "into", top=1, seeds=2)
    write_plan(folder, plan)
    assert json.loads((folder / "confirm.json").read_text())["settings"][0]["objective"] is None
    assert plan_confirmation([failed], folder, top=1, seeds=2)[2]


def test_the_comparison_of_a_sweep_leaves_its_confirming_runs_out(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    folder, plan, _ = plan_confirmation([sweep], None, top=1, seeds=2)
    write_plan(folder, plan)
    write_run(folder / "top1,seed=3", {"optimizer.lr": 1e-2, "seed": 3})
    assert len(load_runs([sweep])) == 6
    assert len(load_runs([folder])) == 1
    assert len(load_runs([tmp_path])) == 6


@pytest.mark.slow
def test_the_winners_of_a_search_are_confirmed_also_after_a_kill(token_folder: Path, tmp_path: Path, cli: Cli) -> None:
    pytest.importorskip("optuna")
    search = [
        *("-m", "hydra/sweeper=optuna", "hydra.sweep.dir=search", *TINY, f"data.path={token_folder}"),
        *("hydra.sweeper.n_trials=2", "hydra/sweeper/sampler=random", "hydra/sweeper/pruner=none"),
        *("optimizer.lr=tag(log, interval(1e-4, 1e-1))", "trainer.max_steps=12"),
    ]
    done = cli(*search, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the best of 2 was picked by the same values" in done.stdout
    (command,) = re.findall(r"python -m lmtrain (confirm \S+)", done.stdout)
    arguments = [*command.split(), "--top", "1", "--seeds", "2", "--n-jobs", "1"]
    trials = {path: path.stat().st_mtime_ns for path in (tmp_path / "search").glob("*/result.json")}

    process = cli.start(*arguments)
    folder = tmp_path / "search" / "confirm"
    deadline = time.monotonic() + 120
    while not list(folder.glob("*/result.json")):
        assert process.poll() is None, process.stdout + process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}

    again = cli(*arguments, timeout=400)
    assert again.returncode == 0, again.stdout + again.stderr
    results = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/result.json")}
    assert sorted(results) == ["top1,seed=1338", "top1,seed=1339"]
    assert all(result["status"] == "completed" for result in results.values())
    completed = {path: at for path, at in first.items() if json.loads(path.read_text())["status"] == "completed"}
    assert {path: path.stat().st_mtime_ns for path in completed} == completed
    assert {path: path.stat().st_mtime_ns for path in trials} == trials
    assert len({result["objective"] for result in results.values()}) == 2
    assert "best loss in the sweep, and its mean on fresh seeds" in again.stdout

    compared = cli("compare", "search")
    assert "2 runs" in compared.stdout
    assert "python -m lmtrain compare search/confirm" in compared.stdout

    for path in (tmp_path / "search").glob("*/.hydra/config.yaml"):
        path.write_text(path.read_text().replace("lmtrain.model.llama.Llama", "os.system"))
    refused = cli(*arguments, "--into", "other")
    assert refused.returncode == 2
    assert "could run code" in refused.stderr
    assert not (tmp_path / "other").exists()
