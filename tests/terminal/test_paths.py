"""Paths as the person at the shell would write them."""

import subprocess
import sys
from pathlib import Path

import pytest

import lmtrain
from lmtrain.terminal.paths import change_folder, short_path

PACKAGE = Path(lmtrain.__file__).parent


def test_a_path_is_relative_to_the_folder_of_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "started").mkdir()
    change_folder(tmp_path / "started")
    assert Path.cwd() == tmp_path / "started"
    assert short_path(tmp_path / "started" / "run") == "started/run"
    assert short_path(tmp_path.parent / "run") == str(tmp_path.parent / "run")


def test_the_folder_changes_in_one_place() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if "os.chdir" in path.read_text(encoding="utf-8")]
    assert files == [PACKAGE / "terminal" / "paths.py"]


def test_the_folder_is_not_looked_up_by_an_import(tmp_path: Path) -> None:
    script = "import os; from lmtrain.terminal.paths import shell_folder; os.chdir(os.sep); print(shell_folder())"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "/"
