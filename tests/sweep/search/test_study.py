"""Several workers share one study, tested with real processes and kills."""

import math
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from lmtrain.errors import ConfigError
from lmtrain.sweep.search.study import JOURNAL, SharedStudy, has_no_loss, rank_completed

TESTS = Path(__file__).parents[2]

SPACE = {"x": FloatDistribution(0, 1), "n": IntDistribution(1, 3)}


def shared(folder: Path, **changes: object) -> SharedStudy:
    settings: dict[str, object] = {
        "storage": None,
        "name": "test",
        "direction": "minimize",
        "sampler": optuna.samplers.RandomSampler(seed=1),
        "pruner": optuna.pruners.MedianPruner(n_startup_trials=1),
        "fixed": ["experiments=a"],
    }
    return SharedStudy(folder, **{**settings, **changes})  # type: ignore[arg-type]


WORKER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_study import SPACE, shared
with shared(Path(sys.argv[1])) as study:
    trial = study.next_trial(SPACE, 100)
    study.report(trial, [(10, 4.0)])
    print(trial.number, repr(trial.params), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def worker(tmp_path: Path) -> Callable[[], "subprocess.Popen[str]"]:
    def start() -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", WORKER, str(tmp_path), str(TESTS), str(Path(__file__).parent)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    return start


def test_the_trial_of_a_dead_worker_is_taken_over_but_not_that_of_a_living_one(
    tmp_path: Path, worker: Callable[[], "subprocess.Popen[str]"]
) -> None:
    processes = [worker(), worker()]
    lines = []
    for process in processes:
        assert process.stdout is not None
        lines.append(process.stdout.readline().split(" ", 1))
    assert sorted(number for number, _ in lines) == ["0", "1"]
    with (tmp_path / JOURNAL).open("a") as journal:
        processes[0].kill()
        processes[0].wait()
        journal.write('{"op_code":')  # as if the worker was killed while it wrote a line
    began = time.monotonic()
    with shared(tmp_path) as study:
        taken = study.next_trial(SPACE, 3)
        assert taken is not None
        assert [str(taken.number), repr(taken.params)] == [lines[0][0], lines[0][1].strip()]
        new = study.next_trial(SPACE, 3)
        assert new is not None
        assert new.number == 2
        assert study.next_trial(SPACE, 3) is None
        assert time.monotonic() - began < 20  # it did not wait for the locks of the dead worker
        study.report(taken, [(10, 4.0), (20, 3.5)])
        assert study.trials()[taken.number].intermediate_values == {10: 4.0, 20: 3.5}
        assert not list(study.trials())[int(lines[1][0])].state.is_finished()
    processes[1].communicate()
    with shared(tmp_path) as study:  # the trial of a worker that ended normally is also taken over
        numbers = {trial.number for _ in range(3) if (trial := study.next_trial(SPACE, 3))}
        assert numbers == {0, 1, 2}


def test_a_trial_without_a_loss_is_the_worst_and_never_the_best(tmp_path: Path) -> None:
    with shared(tmp_path, sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=4)) as study:
        for number in range(30):
            trial = study.next_trial({"x": FloatDistribution(0, 1)}, 30)
            assert trial is not None
            x = trial.params["x"]
            study.report(trial, [(1, 9.0)])
            if x > 0.3:  # the loss falls with x, up to the point where training diverges
                study.tell(trial, "diverged", None if number % 2 else 1.0, "no number")
            else:
                study.tell(trial, "completed", 5 - x, None)
        trials = study.trials()
    assert {trial.value for trial in trials if has_no_loss(trial)} == {9.0}
    assert all(trial.state is TrialState.COMPLETE for trial in trials)
    best = rank_completed(trials, "minimize")
    assert not any(map(has_no_loss, best))
    assert best[0].value == study.study.best_value
    late = [trial for trial in trials[15:] if has_no_loss(trial)]
    assert len(late) < 10  # the sampler avoids that region; by chance there would be 10 or more of 15


def test_the_first_trial_may_fail(tmp_path: Path) -> None:
    with shared(tmp_path) as study:
        trial = study.next_trial(SPACE, 1)
        assert trial is not None
        study.tell(trial, "failed", None, "no memory")
        (only,) = study.trials()
        assert has_no_loss(only)
        assert math.isfinite(only.value or math.nan)


def test_an_abandoned_trial_keeps_its_values_if_the_range_changes(tmp_path: Path) -> None:
    with shared(tmp_path) as study:
        assert study.newest_distributions() == {}
        left = study.next_trial(SPACE, 9)
        assert left is not None
    wider = {**SPACE, "x": FloatDistribution(2, 3)}
    with shared(tmp_path) as study, warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna's warning about it must not reach the user
        assert study.newest_distributions() == SPACE
        taken, new = (study.next_trial(wider, 9) for _ in range(2))
        assert taken is not None
        assert new is not None
        assert (taken.number, taken.params) == (left.number, left.params)
        assert new.params["x"] >= 2
        assert study.newest_distributions() == wider


def test_a_hopeless_trial_is_recognised_by_its_losses(tmp_path: Path) -> None:
    with shared(tmp_path) as study:
        good, bad = (study.next_trial(SPACE, 2) for _ in range(2))
        assert good is not None
        assert bad is not None
        assert study.report(good, [(10, 4.0), (20, 3.0)]) is None
        study.tell(good, "completed", 3.0, None)
        assert study.report(bad, [(10, 3.9)]) is None
        reason = study.report(bad, [(20, 3.8)])
        assert reason == "MedianPruner stopped trial 1 because of val/loss 3.8000 at step 20"
        study.tell(bad, "pruned", 3.8, None)
        assert [trial.state for trial in study.trials()] == [TrialState.COMPLETE, TrialState.PRUNED]


def test_a_continued_study_draws_new_values_and_refuses_other_overrides(tmp_path: Path) -> None:
    xs = []
    for _ in range(2):
        with shared(tmp_path) as study:
            trial = study.next_trial(SPACE, 9)
            assert trial is not None
            xs.append(trial.params["x"])
            study.tell(trial, "completed", 1.0, None)
    assert xs[0] != xs[1]
    with (
        pytest.raises(ConfigError, match=r"has a study with other overrides \(experiments=a\)"),
        shared(tmp_path, fixed=["experiments=b"]),
    ):
        pass
    with shared(tmp_path) as study, pytest.raises(ConfigError, match="another search space"):
        study.next_trial({"x": IntDistribution(1, 2)}, 9)
    with (
        pytest.raises(ConfigError, match=r"hydra\.sweeper\.storage=nowhere://x: cannot be used"),
        shared(tmp_path, storage="nowhere://x"),
    ):
        pass


def test_brute_force_ends_when_the_space_is_exhausted(tmp_path: Path) -> None:
    space = {"n": IntDistribution(1, 3)}
    with shared(tmp_path, sampler=optuna.samplers.BruteForceSampler(seed=0)) as study:
        limit = study.trial_limit(10, 3)
        while trial := study.next_trial(space, limit):
            study.tell(trial, "completed", float(trial.params["n"]), None)
        assert sorted(trial.params["n"] for trial in study.trials()) == [1, 2, 3]
