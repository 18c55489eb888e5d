"""A study is reported as a table and a picture."""

import itertools
from pathlib import Path

import pytest

pytest.importorskip("optuna")
pytest.importorskip("matplotlib")

import optuna
from matplotlib.figure import Figure

from lmtrain.sweep.search.importance import importances
from lmtrain.sweep.search.report import MAX_LOG_TICKS, _few_log_ticks, print_trials, write_picture
from lmtrain.sweep.search.study import quiet_optuna


def test_a_study_is_drawn(tmp_path: Path) -> None:
    distributions = {
        "optimizer.lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
        "model": optuna.distributions.CategoricalDistribution(["gpt2", "llama"]),
    }
    complete, pruned = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
    with quiet_optuna():
        study = optuna.create_study(study_name="search")
        for number in range(12):
            params = {"optimizer.lr": 10.0 ** -(1 + number % 4), "model": ["gpt2", "llama"][number % 2]}
            study.add_trial(
                optuna.trial.create_trial(
                    params=params,
                    distributions=distributions,
                    value=1.0 + number % 5,
                    state=pruned if number % 3 == 2 else complete,
                )
            )
        assert write_picture(study, tmp_path / "study.png", importances(study)) == ", with a picture in study.png"
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def test_trials_fit_a_hundred_columns_and_have_the_values_of_their_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["optimizer.lr", "optimizer.weight_decay", "scheduler.warmup_share", "model.dropout", "data.path"]
    numbers = {name: optuna.distributions.FloatDistribution(1e-4, 1.0, log=True) for name in names[:4]}
    distributions = numbers | {"data.path": optuna.distributions.CategoricalDistribution(["$a/b[/x]$", "$"])}
    params = dict.fromkeys(names[:4], 0.0123456789) | {"data.path": "$a/b[/x]$"}
    trials = [
        optuna.trial.create_trial(params=params, distributions=distributions, value=float(number))
        for number in range(3)
    ]
    print_trials(trials, trials)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert shown.count("0.01235") == 12
    assert "$a/b[/x]$" in shown
    assert "optimizer" not in shown  # the heading is the short name, lr


def test_choices_that_look_like_mathematics_are_drawn_literally(tmp_path: Path) -> None:
    distribution = optuna.distributions.CategoricalDistribution(["$\\x$", "$\\frac$"])
    with quiet_optuna():
        study = optuna.create_study(study_name="$\\x$")
        for choice in distribution.choices:
            study.add_trial(
                optuna.trial.create_trial(
                    params={"data.path": choice}, distributions={"data.path": distribution}, value=1
                )
            )
        assert write_picture(study, tmp_path / "study.png", {}) == ", with a picture in study.png"


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([2e-3, 6e-3], ["0.002", "0.004", "0.006"]),  # less than a decade
        ([1e-4, 1.0], ["0.0001", "0.01", "1"]),
        ([2.11e-3, 2.57e-3], ["0.00211", "0.00257"]),  # no round number in between
        ([0.01], ["0.01"]),
    ],
)
def test_a_log_axis_has_a_few_plain_numbers(values: list[float], labels: list[str]) -> None:
    figure = Figure(figsize=(3.6, 3.2))
    axes = figure.add_subplot()
    _few_log_ticks(axes, values)
    axes.scatter(values, values)
    figure.draw_without_rendering()
    assert [label.get_text() for label in axes.get_xticklabels()] == labels
    assert not any(label.get_text() for label in axes.get_xticklabels(minor=True))
    assert len(labels) <= MAX_LOG_TICKS
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
