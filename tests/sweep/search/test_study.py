"""One study, several workers: real processes, real kills."""

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


def test_a_dead_workers_trial_is_taken_over_and_a_living_ones_is_not(
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
        journal.write('{"op_code":')  # as if it was killed in the middle of a line
    began = time.monotonic()
    with shared(tmp_path) as study:
        taken = study.next_trial(SPACE, 3)
        assert taken is not None
        assert [str(taken.number), repr(taken.params)] == [lines[0][0], lines[0][1].strip()]
        new = study.next_trial(SPACE, 3)
        assert new is not None
        assert new.number == 2
        assert study.next_trial(SPACE, 3) is None
        assert time.monotonic() - began < 20  # and has not waited for a dead one's locks
        study.report(taken, [(10, 4.0), (20, 3.5)])
        assert study.trials()[taken.number].intermediate_values == {10: 4.0, 20: 3.5}
        assert not list(study.trials())[int(lines[1][0])].state.is_finished()
    processes[1].communicate()
    with shared(tmp_path) as study:  # what ended in peace, but left its trial, is dead as well
        numbers = {trial.number for _ in range(3) if (trial := study.next_trial(SPACE, 3))}
        assert numbers == {0, 1, 2}


def test_a_trial_without_a_loss_is_the_worst_and_never_the_best(tmp_path: Path) -> None:
    with shared(tmp_path, sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=4)) as study:
        for number in range(30):
            trial = study.next_trial({"x": FloatDistribution(0, 1)}, 30)
            assert trial is not None
            x = trial.params["x"]
            study.report(trial, [(1, 9.0)])
            if x > 0.3:  # the loss falls towards a cliff
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
    assert len(late) < 10  # as it keeps away from there: chance alone would make 10 or more of 15


def test_the_first_of_all_may_fail(tmp_path: Path) -> None:
    with shared(tmp_path) as study:
        trial = study.next_trial(SPACE, 1)
        assert trial is not None
        study.tell(trial, "failed", None, "no memory")
        (only,) = study.trials()
        assert has_no_loss(only)
        assert math.isfinite(only.value or math.nan)


def test_one_left_behind_keeps_its_values_though_the_range_is_another_now(tmp_path: Path) -> None:
    with shared(tmp_path) as study:
        assert study.newest_distributions() == {}
        left = study.next_trial(SPACE, 9)
        assert left is not None
    wider = {**SPACE, "x": FloatDistribution(2, 3)}
    with shared(tmp_path) as study, warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna's own would only puzzle
        assert study.newest_distributions() == SPACE
        taken, new = (study.next_trial(wider, 9) for _ in range(2))
        assert taken is not None
        assert new is not None
        assert (taken.number, taken.params) == (left.number, left.params)
        assert new.params["x"] >= 2
        assert study.newest_distributions() == wider


def test_a_hopeless_trial_is_known_by_its_losses(tmp_path: Path) -> None:
    with shared(tmp_path) as study:
        good, bad = (study.next_trial(SPACE, 2) for _ in range(2))
        assert good is not None
        assert bad is not None
        assert study.report(good, [(10, 4.0), (20, 3.0)]) is None
        study.tell(good, "completed", 3.0, None)
        assert study.report(bad, [(10, 3.9)]) is None
        assert study.report(bad, [(20, 3.8)]) == "val/loss 3.8000 at step 20 gives trial 1 no hope (MedianPruner)"
        study.tell(bad, "pruned", 3.8, None)
        assert [trial.state for trial in study.trials()] == [TrialState.COMPLETE, TrialState.PRUNED]


def test_a_study_that_goes_on_draws_anew_and_is_of_one_thing(tmp_path: Path) -> None:
    xs = []
    for _ in range(2):
        with shared(tmp_path) as study:
            trial = study.next_trial(SPACE, 9)
            assert trial is not None
            xs.append(trial.params["x"])
            study.tell(trial, "completed", 1.0, None)
    assert xs[0] != xs[1]
    with (
        pytest.raises(ConfigError, match=r"holds a study of other overrides \(experiments=a\)"),
        shared(tmp_path, fixed=["experiments=b"]),
    ):
        pass
    with shared(tmp_path) as study, pytest.raises(ConfigError, match="another search space"):
        study.next_trial({"x": IntDistribution(1, 2)}, 9)
    with (
        pytest.raises(ConfigError, match=r"hydra\.sweeper\.storage=nowhere://x: can't be used"),
        shared(tmp_path, storage="nowhere://x"),
    ):
        pass


def test_brute_force_ends_with_the_space(tmp_path: Path) -> None:
    space = {"n": IntDistribution(1, 3)}
    with shared(tmp_path, sampler=optuna.samplers.BruteForceSampler(seed=0)) as study:
        limit = study.trial_limit(10, 3)
        while trial := study.next_trial(space, limit):
            study.tell(trial, "completed", float(trial.params["n"]), None)
        assert sorted(trial.params["n"] for trial in study.trials()) == [1, 2, 3]
