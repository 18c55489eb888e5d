"""Tests of facts about the machine, and of the setting for how OpenMP's threads wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmtrain.machine import SPIN_COUNT, SPIN_VARIABLES, is_installed, limit_spinning


def test_a_folder_with_the_name_of_a_library_is_not_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_such_library", "numpy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.jsonl").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_installed("no_such_library")
    assert not is_installed("not_even_a_folder")
    assert is_installed("numpy")
    assert is_installed("sys")


# OpenMP prints its settings when torch loads it.
SCRIPT = """
import sys
sys.argv = ["lmtrain", "--version"]
from lmtrain.__main__ import main
try:
    main()
except SystemExit:
    assert "torch" not in sys.modules
import torch
"""


def environment_without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SPIN_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_spinning_is_limited_if_the_user_sets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    environment_without_settings(monkeypatch)
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == str(SPIN_COUNT)
    monkeypatch.delenv("GOMP_SPINCOUNT")


@pytest.mark.parametrize(
    ("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "ACTIVE"), ("KMP_BLOCKTIME", "0")]
)
def test_a_users_own_setting_wins(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment_without_settings(monkeypatch)
    monkeypatch.setenv(name, value)
    limit_spinning()
    assert {key: os.environ[key] for key in SPIN_VARIABLES if key in os.environ} == {name: value}


@pytest.mark.slow
def test_the_openmp_that_torch_loads_uses_the_spin_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment_without_settings(monkeypatch)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch came with another OpenMP library")
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in done.stderr
