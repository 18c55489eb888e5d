"""The plots of a folder show each document if there are few, and correct shares if there are many."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the extra lmtrain[plot]")

from support.numbered_tokens import write

from lmtrain.data.inspection.folder import InspectedFolder, inspect_folder
from lmtrain.data.inspection.picture import figure_of_folders
from lmtrain.data.progress import DataProgress


def inspected(folder: Path, **lengths: list[int]) -> InspectedFolder:
    """Inspect a folder of documents of these lengths, each ended by token 0."""
    splits = {
        split: np.concatenate([np.append(np.arange(length) % 50 + 1, 0) for length in each])
        for split, each in lengths.items()
    }
    with DataProgress() as progress:
        return inspect_folder(
            write(folder, **splits), tokenizer=None, end_of_text=0, samples=0, seed=0, progress=progress
        )


def test_few_documents_are_drawn_one_by_one(tmp_path: Path) -> None:
    figure = figure_of_folders([inspected(tmp_path, train=[41_395], val=[4_967])])
    axes = figure.subfigs[0].axes[1]
    drawn = {tuple(point) for line in axes.lines for point in line.get_xydata().tolist()}
    assert drawn == {(41_395, 0), (4_967, 1)}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["train: 1", "val: 1"]
    assert in_view(axes.get_xticks(), axes.get_xlim()) >= 2


# Two lengths in five, such as 5, 11 and 12, become larger through their rounded logarithm.
@pytest.mark.parametrize("shortest", [3, 5, 11, 12, 113])
def test_the_shares_of_all_lengths_add_up_to_one(tmp_path: Path, shortest: int) -> None:
    figure = figure_of_folders([inspected(tmp_path, train=[5_000] * 31, val=[shortest])])
    axes = figure.subfigs[0].axes[1]
    for stairs in axes.patches:
        assert stairs.get_data().values.sum() == pytest.approx(1)
    assert max(axes.get_yticks()) <= 1
    assert in_view(axes.get_xticks(), axes.get_xlim()) >= 2


def test_axes_of_less_than_a_decade_have_ticks(tmp_path: Path) -> None:
    figure = figure_of_folders([inspected(tmp_path, train=[777] * 40, val=[777] * 40)])
    for axes in figure.subfigs[0].axes[1:]:
        assert in_view(axes.get_xticks(), axes.get_xlim()) >= 2


def in_view(ticks: list[float], ends: tuple[float, float]) -> int:
    return sum(ends[0] <= tick <= ends[1] for tick in ticks)
