"""Tests of paths as the user would type them."""

import subprocess
import sys
from pathlib import Path

import pytest

import lmtrain
from lmtrain.terminal.paths import argument_with_home, change_folder, short_path

PACKAGE = Path(lmtrain.__file__).parent


def test_a_path_is_relative_to_the_folder_of_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "started").mkdir()
    change_folder(tmp_path / "started")
    assert Path.cwd() == tmp_path / "started"
    assert short_path(tmp_path / "started" / "run") == "started/run"
    assert short_path(tmp_path.parent / "run") == str(tmp_path.parent / "run")


def test_the_current_folder_is_changed_in_one_place_only() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if "os.chdir" in path.read_text(encoding="utf-8")]
    assert files == [PACKAGE / "terminal" / "paths.py"]


def test_importing_does_not_look_up_the_folder(tmp_path: Path) -> None:
    script = "import os; from lmtrain.terminal.paths import shell_folder; os.chdir(os.sep); print(shell_folder())"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "/"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("~/runs/a", "{home}/runs/a"),
        ("data.path=~/books", "data.path={home}/books"),
        ("+data.path=~/books", "+data.path={home}/books"),
        ("resume='~/runs/a b'", "resume='{home}/runs/a b'"),
        ("--json=~/plan.json", "--json={home}/plan.json"),
        ("data.paths={a: ~/a, b: '~/b'}", "data.paths={{a: {home}/a, b: '{home}/b'}}"),
        ("prepare.source.files=[~/a,~/b]", "prepare.source.files=[{home}/a,{home}/b]"),
        ("~hydra.callbacks", "~hydra.callbacks"),  # Hydra's syntax for deleting a key
        ("data.path=a~/b", "data.path=a~/b"),
        ("data.path=~", "data.path=~"),
        ("", ""),
        ("a\n~/b", "a\n~/b"),
    ],
)
def test_the_home_is_expanded_in_an_argument(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, argument: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert argument_with_home(argument) == expected.format(home=tmp_path)
