"""What is found out about the machine."""

from pathlib import Path

import pytest

from lmtrain.machine import is_installed


def test_a_folder_with_the_name_of_a_library_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_such_library", "numpy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.jsonl").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_installed("no_such_library")
    assert not is_installed("not_even_a_folder")
    assert is_installed("numpy")
    assert is_installed("sys")
