"""`benchmark contention` measures every way of waiting on a tiny model, alone and at the same time."""

import json
from pathlib import Path

import pytest
from support.tokens import TINY

from lmtrain.benchmark.contention import _environment
from lmtrain.commands.benchmark import main
from lmtrain.machine import SPIN_VARIABLES


@pytest.mark.slow
def test_every_way_of_waiting_is_measured_alone_and_at_the_same_time(
    tmp_path: Path, token_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--processes=2", "--rounds=1", "--steps=1", "--json=numbers.json", "--spins"]  # --spins without values
    assert main(["contention", *TINY, f"data.path={token_folder}", *options]) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    ways = ("library", "OMP_WAIT_POLICY=PASSIVE")
    (seconds,) = numbers["seconds"]
    assert seconds.keys() == {f"{way}, {which}" for way in ways for which in ("alone", "each of 2")}
    assert min(seconds.values()) > 0
    printed = capsys.readouterr().out
    assert all(way in printed for way in ways)
    assert "1.00" in printed  # the library's ratio to itself


def test_a_process_has_only_one_setting_of_how_threads_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SPIN_VARIABLES:
        monkeypatch.setenv(name, "1")
    environment = _environment({"GOMP_SPINCOUNT": "500"})
    assert {name: environment.get(name) for name in SPIN_VARIABLES} == {
        "GOMP_SPINCOUNT": "500",
        "OMP_WAIT_POLICY": None,
        "KMP_BLOCKTIME": None,
    }
