"""Selects the runs to compare, and puts them in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmtrain.comparison.columns import available_columns, filter_runs, find_column, selection_notes, sort_runs
from lmtrain.comparison.comparable.measured_alike import measured_alike
from lmtrain.comparison.lineage.families import in_family_order
from lmtrain.comparison.notes import Note
from lmtrain.comparison.run_comparison import default_kind
from lmtrain.comparison.run_values import equal_places, sign
from lmtrain.comparison.runs import ComparedRun, load_runs, with_labels


@dataclass(frozen=True)
class Selection:
    """Which runs to compare, in which order.

    Attributes:
        paths: Run or sweep directories, folders that contain them, globs, or names of runs.
        conditions: Conditions that runs must meet, such as `optimizer.lr>1e-3`.
        sort: A column or config key, with `-` before it for descending; None puts the best run first.
        metric: The metric that is compared.
        higher: Whether higher values of the metric are better; None means that its name decides.
        at_step: The step at which runs are compared; None means the last step that they share.
        value: The value that represents a run in the statistics; None means that the runs decide.
    """

    paths: Sequence[str | Path]
    conditions: Sequence[str] = ()
    sort: str | None = None
    metric: str = "val/loss"
    higher: bool | None = None
    at_step: int | None = None
    value: str | None = None

    def load(self) -> tuple[list[ComparedRun], list[Note]]:
        """Return the runs in their order, and notes about the choice.

        Raises:
            ValueError: No run can be read, none meets the conditions, or there is no such column.
        """
        better = sign(self.metric, self.higher)
        runs = load_runs(self.paths)
        if not runs:
            raise ValueError(f"{' '.join(map(str, self.paths))}: found no run that can be read")
        notes: list[Note] = []
        if self.conditions:
            places = equal_places(runs, self.metric, self.at_step)
            all_runs, columns = runs, available_columns(runs, self.metric, places, better)
            runs = filter_runs(all_runs, self.conditions, columns)
            if not runs:
                raise ValueError(f"--filter {' '.join(map(repr, self.conditions))}: no run meets the condition")
            notes = selection_notes(all_runs, self.conditions, columns)
            runs = with_labels(runs)  # fewer config keys may differ among the remaining runs
        metric = measured_alike(runs, self.metric).metric  # bits per byte if the tokenizers differ
        columns = available_columns(runs, metric, equal_places(runs, metric, self.at_step), better)
        if self.sort is None:
            kind = self.value or default_kind(runs, self.at_step)
            compared = "best_shared" if kind == "best" else kind.replace("-", "_")
            best_first = sort_runs(runs, columns.get(compared, columns["best"]), descending=better < 0)
            return in_family_order(best_first), notes
        column = find_column(self.sort.removeprefix("-"), columns, runs, f"--sort {self.sort}")
        return sort_runs(runs, column, descending=self.sort.startswith("-")), notes
