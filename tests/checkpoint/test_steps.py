"""One rule decides by name what is a checkpoint folder, in code with and without torch."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.checkpoint.steps import CHECKPOINTS, checkpoint_steps, step_folder, steps_in
from lmtrain.commands.evaluate import finished_runs

NO_CHECKPOINTS = (
    "step-5", "step-000000005", "step-0000000x", "step-00000005.old", "step-٠٠٠٠٠٠٠٥", "step-", "best", "latest",
    ".tmp-step-00000005", "broken-step-00000005-0", "other-step-00000005-0",
)  # fmt: skip


@given(step=st.integers(0, 10**12))
def test_the_step_can_be_read_back_from_the_name(step: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    (folder / step_folder(step)).mkdir()
    assert steps_in(folder) == [step]


def test_names_sort_in_the_order_of_their_steps() -> None:
    assert [step_folder(step) for step in (5, 40, 99_999_999)] == ["step-00000005", "step-00000040", "step-99999999"]


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_all_code_agrees_on_what_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / CHECKPOINTS / name).mkdir(parents=True)
    assert checkpoint_steps(tmp_path) == CheckpointFolder(tmp_path / CHECKPOINTS).steps() == []
    assert finished_runs(tmp_path) == []
    (tmp_path / CHECKPOINTS / step_folder(7)).mkdir()
    (tmp_path / CHECKPOINTS / step_folder(123_456_789)).mkdir()
    assert checkpoint_steps(tmp_path) == CheckpointFolder(tmp_path / CHECKPOINTS).steps() == [7, 123_456_789]
    assert finished_runs(tmp_path) == [tmp_path]


def test_a_run_without_a_checkpoint_folder_has_no_steps(tmp_path: Path) -> None:
    assert checkpoint_steps(tmp_path) == []
