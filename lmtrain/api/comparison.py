"""Compares runs from Python, as `python -m lmtrain compare` does."""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console, ConsoleOptions
from rich.text import Text

from lmtrain.comparison.output.file_kinds import NEEDED, OUTPUTS, output_bytes
from lmtrain.config.build import raising_config_errors
from lmtrain.errors import ConfigError
from lmtrain.machine import is_installed
from lmtrain.run.reading.frames import FrameLibrary, frame_of
from lmtrain.run.reading.stored_run import Run
from lmtrain.terminal.as_html import as_html
from lmtrain.terminal.console import PlainConsole

if TYPE_CHECKING:  # with scipy
    from lmtrain.comparison.run_comparison import RunComparison
    from lmtrain.run.reading.frames import Frame

MODES = ("planned", "again")
HTML_WIDTH = 240  # characters in which the columns of a table in a notebook must fit
KINDS = {suffix: suffix for suffix in OUTPUTS} | {"md": "markdown", "htm": "html"}  # of a file, by its suffix


@dataclass(frozen=True)
class Setting:
    """The runs of a comparison that differ only in the seed, and the values that represent them.

    Attributes:
        label: The setting in words, such as `lr=0.003`.
        keys: The values of the config keys in which the settings differ.
        values: The value of each seed that has one.
        mean: The mean of the values; NaN without values.
        half_width_95: Half of the 95% interval of the mean; NaN with fewer than two values.
        diverged: The seeds whose runs diverged.
    """

    label: str
    keys: dict[str, Any]
    values: dict[Any, float]
    mean: float
    half_width_95: float
    diverged: tuple[Any, ...]


@dataclass(frozen=True)
class Verdict:
    """What the seeds say about the reference (the best setting, or the baseline) and another setting.

    Attributes:
        reference: The label of the reference.
        other: The label of the other setting.
        verdict: `better` if the reference is better, `worse` if the other one is (only with a baseline), `undecided` if
            chance may explain the difference, `none` if these runs allow no verdict.
        difference: The reference's mean minus the other's.
        half_width_95: Half of the 95% interval of the difference.
        p: The p-value, corrected for all verdicts of the comparison.
        sentence: The verdict in words.
    """

    reference: str
    other: str
    verdict: Literal["better", "worse", "undecided", "none"]
    difference: float
    half_width_95: float
    p: float
    sentence: str


@dataclass(frozen=True, repr=False)
class Comparison:
    """Runs side by side, and whether their differences are more than noise. `compare` returns it.

    A notebook shows it with its curves; `rich.print` shows it as the command does.

    Example:
        >>> found = compare(["outputs/lr"])
        >>> found.frame()[["run", "optimizer.lr", "best"]]
        >>> [verdict.sentence for verdict in found.verdicts]

    Attributes:
        found: All results, for programs: settings, effects, families, and when a goal is reached.
    """

    found: "RunComparison"

    @property
    def runs(self) -> list[Run]:
        """The runs, in the order of the table."""
        return [Run(Path(os.path.abspath(run.path))) for run in self.found.runs]

    @property
    def table(self) -> list[dict[str, Any]]:
        """A dict for each run, from the key of each column (as for `compare --columns`) to its value."""
        return [{key: column.value(run) for key, column in self.found.columns.items()} for run in self.found.runs]

    def frame(self, library: FrameLibrary | None = None) -> "Frame":
        """Return the table as a data frame of pandas (default, if it is installed) or polars.

        Raises:
            ConfigError: The library is not installed.
        """
        return frame_of(self.table, library)

    @property
    def settings(self) -> list[Setting]:
        """The settings, best first; of runs that measure different things, those of the first class."""
        from lmtrain.comparison.statistics.significance import half_width

        return [
            Setting(
                label=group.label,
                keys=dict(group.settings),
                values=dict(group.values),
                mean=group.mean,
                half_width_95=half_width(group.sample),
                diverged=group.diverged,
            )
            for group in self.found.conclusions.groups
        ]

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdict about the reference and each other setting; empty if these runs allow none."""
        conclusions = self.found.conclusions
        reference = conclusions.baseline or (conclusions.groups[0] if conclusions.groups else None)
        return [
            Verdict(
                reference="" if reference is None else reference.label,
                other=pair.other.label,
                verdict=pair.verdict,
                difference=pair.difference.value,
                half_width_95=pair.difference.half_width,
                p=pair.p,
                sentence=pair.sentence,
            )
            for pair in conclusions.comparisons
        ]

    @property
    def sentences(self) -> list[str]:
        """The conclusions in words, and why there are none where there are none."""
        return [*self.found.refusals, *self.found.conclusions.sentences]

    @property
    def notes(self) -> list[str]:
        """Remarks about runs that are left out, repeated or not comparable."""
        return [note.text for note in self.found.notes]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the comparison to a file; its suffix says how: `html`, `png`, `pdf`, `svg`, `json`, `csv` or `md`.

        Raises:
            ConfigError: There is no such kind of file, or what it needs is not installed.
        """
        file = Path(path).expanduser()
        kind = KINDS.get(file.suffix[1:].lower())
        if kind is None:
            raise ConfigError(f"{file}: the suffix must be one of {', '.join(OUTPUTS)}")
        if kind in NEEDED and not is_installed(NEEDED[kind]):
            raise ConfigError(f"{file}: needs {NEEDED[kind]}; install it with pip install 'lmtrain[plot]'")
        with raising_config_errors():
            file.write_bytes(output_bytes(kind, self.found))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from lmtrain.comparison.output.terminal_view import comparison_view

        # Rendered by lmtrain's own console, because other ones would read [brackets] in a name as markup.
        plain = PlainConsole(width=options.max_width, force_terminal=console.is_terminal, force_jupyter=False)
        with plain.capture() as captured:
            for part in comparison_view(self.found, width=options.max_width):
                plain.print(part)
        yield Text.from_ansi(captured.get())

    def _repr_html_(self) -> str:
        """Return what a notebook shows: curves, if matplotlib is installed, tables and sentences; without scripts."""
        from lmtrain.comparison.output.terminal_view import comparison_view

        picture = ""
        if is_installed("matplotlib"):
            with contextlib.suppress(ValueError):  # no run has a value yet
                svg = output_bytes("svg", self.found).decode()
                picture = svg[svg.index("<svg") :]
        return f"{picture}\n{as_html(comparison_view(self.found, width=HTML_WIDTH))}"

    def __repr__(self) -> str:
        best = f", best={self.settings[0].label!r}" if len(self.settings) > 1 else ""
        return f"Comparison({len(self.found.runs)} runs, {self.found.metric!r}{best})"


def compare(
    runs: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    metric: str = "val/loss",
    higher: bool | None = None,
    at_step: int | None = None,
    value: str | None = None,
    baseline: str | None = None,
    margin: float | None = None,
    difference: float | None = None,
    goal: float | None = None,
    conditions: Sequence[str] = (),
    sort: str | None = None,
    mode: Literal["planned", "again"] | None = None,
) -> Comparison:
    """Compare runs, and say whether their differences are more than the noise between seeds.

    Only files are read; torch is not needed, and runs may still be training.

    Args:
        runs: Runs, run or sweep directories, folders with runs, globs, or names such as `latest`.
        metric: The metric to compare.
        higher: Whether higher values are better; None means that the metric's name decides.
        at_step: The step to compare at; None means the last one that all runs have.
        value: The value of a run for the statistics: `at-step`, `at-tokens`, `at-flops`, `at-seconds`, `final` or
            `best`; None means that the runs decide.
        baseline: The setting to compare all others with, such as `lr=0.003`; None means the best one.
        margin: A difference that is too small to matter; with it, settings may also be found to be the same.
        difference: The difference for which to say how many seeds would detect it.
        goal: The value of the metric whose first evaluation is reported; None means one that most runs reach.
        conditions: Conditions that runs must meet, such as `optimizer.lr>1e-3`.
        sort: A column or config key to sort by, with `-` before it for descending; None puts the best run first.
        mode: `planned` if the number of seeds was fixed before the first look, `again` if seeds were added after one;
            None means what the files of the runs' sweep say.

    Raises:
        ConfigError: There is no such run, metric, column or setting, or a value is not one of those above.

    Example:
        >>> found = compare(runs, baseline="lr=0.001")
        >>> found.verdicts[0].verdict, found.verdicts[0].p
        >>> found.save("comparison.html")
    """
    from lmtrain.comparison.run_comparison import compare as compare_loaded
    from lmtrain.comparison.run_values import VALUE_KINDS
    from lmtrain.comparison.selection import Selection

    for name, chosen, known in (("value", value, VALUE_KINDS), ("mode", mode, MODES)):
        if chosen is not None and chosen not in known:
            raise ConfigError(f"{name}={chosen!r}: must be one of {', '.join(known)}")
    for name, number in (("margin", margin), ("difference", difference)):
        if number is not None and not 0 < number < math.inf:
            raise ConfigError(f"{name}={number}: must be a number above 0")
    given = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    paths = [os.path.expanduser(os.fspath(run)) for run in given]
    if not paths:
        raise ConfigError("runs=[]: give at least one run")
    with raising_config_errors():
        selected, notes = Selection(paths, conditions, sort, metric, higher, at_step, value).load()
        found = compare_loaded(
            selected,
            metric=metric,
            higher=higher,
            at_step=at_step,
            value=value,
            difference=difference,
            goal=goal,
            mode=mode,
            about_choice=notes,
            baseline=baseline,
            margin=margin,
        )
    return Comparison(found)
