"""Reports the results of a study: a table of its best trials, `search.json` and a picture."""

import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from lmtrain.comparison.labels import short_names
from lmtrain.comparison.looking.picked import luck_in_words
from lmtrain.errors import COMPLETED, DIVERGED, FAILED, PRUNED
from lmtrain.files.durable import write_atomically
from lmtrain.files.lock import locked_folder
from lmtrain.machine import is_installed
from lmtrain.run.directory import SEARCH_FILE
from lmtrain.sweep.report import TABLE_COLUMNS
from lmtrain.sweep.search.importance import ParameterImportance
from lmtrain.sweep.search.space import SearchSpace, short_number
from lmtrain.sweep.search.study import SharedStudy, has_no_loss, rank_completed
from lmtrain.terminal.console import console
from lmtrain.terminal.paths import short_path
from lmtrain.terminal.units import counted

if TYPE_CHECKING:  # an extra
    from matplotlib.figure import Figure

MAX_ROWS = 10
MAX_SLICES = 8
MAX_LOG_TICKS = 4
COLORS = {
    COMPLETED.status: "#1f77b4",
    PRUNED.status: "#ff7f0e",
    FAILED.status: "#d62728",
    DIVERGED.status: "#9467bd",
}
MARKERS = {COMPLETED.status: "o", PRUNED.status: "x", FAILED.status: "v", DIVERGED.status: "^"}


def trial_status(trial: FrozenTrial) -> str:
    """Return the status of a trial as a text."""
    if has_no_loss(trial):
        return str(trial.user_attrs.get("status", FAILED.status))
    return {TrialState.COMPLETE: COMPLETED.status, TrialState.PRUNED: PRUNED.status}.get(trial.state, "unfinished")


def write_search_report(study: SharedStudy, folder: Path, importance: Mapping[str, ParameterImportance]) -> str:
    """Write every trial to `search.json`, and a picture to `study.png`.

    Returns:
        A note about the picture, to be appended to a sentence.
    """
    trials = study.trials()
    best = rank_completed(trials, study.direction)
    content = {
        "study": study.name,
        "direction": study.direction,
        "best": best[0].number if best else None,
        "importance": {
            key: {**asdict(one), "more_than_chance": one.more_than_chance} for key, one in importance.items()
        },
        "trials": [
            {
                "number": trial.number,
                "status": trial_status(trial),
                "objective": None if has_no_loss(trial) else trial.value,
                "params": _params(trial),
                "directory": trial.user_attrs.get("directory"),
                "reason": trial.user_attrs.get("reason"),
            }
            for trial in trials
        ],
    }
    with locked_folder(folder):  # several processes may end at the same time
        write_atomically(folder / SEARCH_FILE, json.dumps(content, indent=2) + "\n")
        return write_picture(study.study, folder / "study.png", importance)


def show_search_report(
    study: SharedStudy,
    space: SearchSpace,
    folder: Path,
    importance: Mapping[str, ParameterImportance],
    picture_note: str,
) -> None:
    """Print the results so far, and the commands that compare the runs and repeat the best one."""
    trials = study.trials()
    best = rank_completed(trials, study.direction)
    print_trials(trials, best)
    console.print(f"everything is in {short_path(folder)}{picture_note}", soft_wrap=True)
    if importance:
        mattered = [f"{key} ({one.share:.2f} of 1)" for key, one in importance.items() if one.more_than_chance]
        others = [key for key, one in importance.items() if not one.more_than_chance]
        console.print(f"mattered: {', '.join(mattered) or 'no parameter, as far as these trials show'}")
        if others:
            console.print(f"no more than chance: {', '.join(others)}")
    if best:
        command = shlex.join(["python", "-m", "lmtrain", *space.overrides(best[0].params)])
        console.print(f"to train with the best setting: {command}", soft_wrap=True)
        console.print(f"to compare: python -m lmtrain compare {shlex.quote(short_path(folder))}")
        if len(best) > 1:
            console.print(luck_in_words(len(best)))
        # With its own seed, the best trial would only repeat its bits.
        console.print(f"to confirm with fresh seeds: python -m lmtrain confirm {shlex.quote(short_path(folder))}")


def print_trials(trials: Sequence[FrozenTrial], best: Sequence[FrozenTrial]) -> None:
    """Print the best trials with their values, the number of trials by status, and why trials failed."""
    names = short_names(dict.fromkeys(name for trial in trials for name in trial.params))
    table = Table()
    for heading in ("trial", "best val", *names.values()):  # the values are also the names of the directories
        table.add_column(heading, overflow="fold", justify="right")
    for trial in best[:MAX_ROWS]:
        params = _params(trial)
        table.add_row(str(trial.number), f"{trial.value:.4f}", *(str(params.get(name, "–")) for name in names))
    if best:
        console.print(table, width=min(console.width, TABLE_COLUMNS))
    counts = Counter(map(trial_status, trials))
    by_status = ", ".join(f"{count} {name}" for name, count in counts.items())
    console.print(f"{counted(len(trials), 'trial')}: {by_status}")
    for trial in trials:
        if has_no_loss(trial):
            reason = trial.user_attrs.get("reason", "no loss")
            console.print(f"trial {trial.number}: {trial_status(trial)}: {reason}")


def write_picture(study: optuna.Study, path: Path, importance: Mapping[str, ParameterImportance]) -> str:
    """Draw the search as a PNG: the losses in order, the importance of the parameters, and the loss over each of them.

    Returns:
        A note about the picture, to be appended to a sentence.
    """
    if not is_installed("matplotlib"):
        return f"; the picture {path.name} needs pip install 'lmtrain[plot]'"
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished() and trial.values]
    if not trials:
        return ""
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # a choice, such as a path, may contain a $
        _draw_study(study, trials, importance).savefig(path, dpi=130)
    return f", with a picture in {path.name}"


def _draw_study(
    study: optuna.Study, trials: Sequence[FrozenTrial], importance: Mapping[str, ParameterImportance]
) -> "Figure":
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for trial in trials for name in trial.params))[:MAX_SLICES]
    columns = max(2, min(4, len(names)))
    rows = 1 + math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.6 * columns, 3.2 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    _draw_history(
        figure.add_subplot(grid[0, : columns - 1] if importance else grid[0, :]), trials, study.direction.name.lower()
    )
    if importance:
        _draw_importances(figure.add_subplot(grid[0, columns - 1]), importance)
    for number, name in enumerate(names):
        _draw_slice(figure.add_subplot(grid[1 + number // columns, number % columns]), trials, name)
    figure.suptitle(f"{study.study_name}: {counted(len(trials), 'trial')}", fontsize=11)
    return figure


def _draw_history(axes: Any, trials: Sequence[FrozenTrial], direction: str) -> None:
    for name in COLORS:
        _scatter(axes, [(trial.number, trial) for trial in trials if trial_status(trial) == name], name)
    done = [trial for trial in trials if trial_status(trial) == COMPLETED.status]
    leaders = [rank_completed(done[: count + 1], direction)[0] for count in range(len(done))]
    if done:
        steps = [*(trial.number for trial in done), trials[-1].number]
        losses = [*(trial.value for trial in leaders), leaders[-1].value]
        axes.step(steps, losses, where="post", color="0.4", linewidth=1, label="best so far")
    axes.set(xlabel="trial", ylabel="validation loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=7)


def _draw_importances(axes: Any, importance: Mapping[str, ParameterImportance]) -> None:
    """Draw a bar for each parameter, pale if it is no more than chance, and a mark at what chance gives."""
    names = list(importance)[::-1]
    colors = ["0.4" if importance[name].more_than_chance else "0.85" for name in names]
    axes.barh(names, [importance[name].share for name in names], color=colors)
    axes.plot([importance[name].chance for name in names], names, "|", color="#d62728", markersize=12, label="chance")
    axes.set(xlabel="importance")
    axes.legend(fontsize=7)
    axes.tick_params(axis="y", labelsize=7)


def _draw_slice(axes: Any, trials: Sequence[FrozenTrial], key: str) -> None:
    """Draw the loss over one parameter."""
    having = [trial for trial in trials if key in trial.params]
    distribution = having[0].distributions[key]
    if isinstance(distribution, CategoricalDistribution):  # at equal distances, as choices may be numbers and words
        places = {str(choice): place for place, choice in enumerate(distribution.choices)}
        axes.set_xticks(list(places.values()), list(places), fontsize=7)
        axes.set_xlim(-0.5, len(places) - 0.5)
    else:
        places = {}
        if getattr(distribution, "log", False):
            _few_log_ticks(axes, [float(trial.params[key]) for trial in having])
    for name in COLORS:
        points = [(places.get(str(trial.params[key]), trial.params[key]), trial) for trial in having]
        _scatter(axes, [point for point in points if trial_status(point[1]) == name], name)
    axes.set(xlabel=key, ylabel="validation loss")


def _few_log_ticks(axes: Any, values: Sequence[float]) -> None:
    """Give a log axis at most four labels; matplotlib's labels overlap on an axis of a decade or less."""
    from matplotlib.ticker import FixedLocator, NullFormatter

    axes.set_xscale("log")
    low, high = min(values), max(values)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        ticks = [float(f"{digit}e{exponent}") for exponent in exponents for digit in digits]
        ticks = [tick for tick in ticks if low / 1.1 <= tick <= high * 1.1]
        if len(ticks) > 2:
            break
    ticks = (ticks if len(ticks) > 1 else sorted({low, high}))[:: -(-len(ticks) // MAX_LOG_TICKS) or 1]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _scatter(axes: Any, points: Sequence[tuple[Any, FrozenTrial]], name: str) -> None:
    if points:
        losses = [trial.value for _, trial in points]
        places = [place for place, _ in points]
        axes.scatter(places, losses, s=18, color=COLORS[name], marker=MARKERS[name], label=name)


def _params(trial: FrozenTrial) -> dict[str, Any]:
    """Return the trial's values, rounded as in the config of its run."""
    return {key: short_number(value, trial.distributions[key]) for key, value in trial.params.items()}
