"""Decisions as real processes: killed, stopped by a signal, restarted; and a run that is asked to stop."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from support.command_line import Cli
from support.decided_runs import ledger_lines, tiny_baseline
from support.synthetic_runs import write_run

from lmtrain.decide.campaign import describe
from lmtrain.decide.lagging import Curve, Watcher
from lmtrain.decide.ledger import Ledger
from lmtrain.decide.pairs import Question
from lmtrain.decide.rule import Budget, judge
from lmtrain.loop.stop_request import PRUNE_FILE
from lmtrain.sweep.job import Job


def wait_for_start(campaign: Path, number: int, timeout_s: float = 60) -> None:
    """Wait until the first job of the baseline has been started so many times."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        logs = [log.read_text() for log in campaign.glob("runs/*/seed=1/job.log")]
        if sum(log.count("$ python") for log in logs) >= number:
            return
        time.sleep(0.01)
    raise AssertionError(f"no start {number}")


@pytest.mark.slow
def test_a_killed_and_a_stopped_decision_go_on(tmp_path: Path, token_folder: Path, cli: Cli) -> None:
    campaign = tmp_path / "campaign"
    command = ["decide", "--baseline", *tiny_baseline(token_folder), "--challenger", "optimizer.lr=1e9"]
    command += ["--campaign", "campaign", "--json"]

    killed = cli.start(*command)
    wait_for_start(campaign, 1)
    killed.kill()

    stopped = cli.start(*command)
    wait_for_start(campaign, 2)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait() == 143, stopped.stdout + stopped.stderr
    assert "stopped by a signal; the same command goes on" in stopped.stderr
    assert json.loads(stopped.stdout)["verdict"] == "more"
    assert [line["event"] for line in ledger_lines(campaign)] == ["campaign", "started"]

    done = cli(*command)
    assert done.returncode == 10, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert (result["verdict"], result["reason"], result["seeds"]) == ("drop", "diverged", [1])
    assert result["pairs"][0]["statuses"] == ["completed", "diverged"]
    assert [line["event"] for line in ledger_lines(campaign)] == ["campaign", "started", "ended"]

    # Nothing runs again, and the verdict stays.
    starts = [log.read_text().count("$ python") for log in campaign.glob("runs/*/seed=1/job.log")]
    again = cli(*command)
    assert again.returncode == 10
    assert json.loads(again.stdout) == result
    assert [log.read_text().count("$ python") for log in campaign.glob("runs/*/seed=1/job.log")] == starts


def test_the_json_of_an_open_idea_has_the_keys_of_one_that_has_ended(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.open_campaign(None, None)
    still_open = describe(ledger.start("idea", {"changes": ["a=1"]}), tmp_path)
    assert still_open["verdict"] is None
    budget = Budget(pairs=2)
    result = judge([], level=0.01, margin=0.0, budget=budget).recorded()
    work = {"seeds": [], "pairs": [], "cost": {}}
    ended = describe(ledger.end("idea", result | work | {"verdict": "drop"}), tmp_path)
    assert ended["exit_code"] == 10
    assert still_open.keys() == ended.keys()


def test_a_run_that_is_far_behind_is_asked_to_stop_and_asked_again_after_a_restart(tmp_path: Path) -> None:
    steps = np.array([50, 100, 200])
    known = [Curve("known", steps, np.array([0.01, 0.0, noise])) for noise in (0.01, -0.01, 0.02, -0.02, 0.0)]
    watcher = Watcher(Question(), known)
    jobs = [Job((), tmp_path / name, name) for name in ("baseline", "near", "far")]
    for job, loss in zip(jobs, (3.0, 3.02, 5.0), strict=True):
        write_run(job.directory, final_loss=loss, status=None)
    for challenger in jobs[1:]:
        metrics = challenger.directory / "metrics.jsonl"
        lines = metrics.read_text().splitlines(keepends=True)
        metrics.write_text("".join(lines[:100]))  # half of the run
        watcher.look(jobs[0], challenger)
    assert not (tmp_path / "near" / PRUNE_FILE).exists()
    request = tmp_path / "far" / PRUNE_FILE
    assert "decide stopped it at step 100" in json.loads(request.read_text())["reason"]
    request.unlink()
    watcher.look(jobs[0], jobs[2])
    assert request.exists()


def test_nothing_is_asked_of_a_run_that_has_not_begun(tmp_path: Path) -> None:
    watcher = Watcher(Question(), [])
    (tmp_path / "a").mkdir()
    watcher.look(Job((), tmp_path / "b", "b"), Job((), tmp_path / "a", "a"))
    assert not list((tmp_path / "a").iterdir())
