"""Tests that `benchmark startup` measures every phase of a real start, of this version and of another checkout."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from support.tokens import TINY

from lmtrain.benchmark import startup, startup_process
from lmtrain.benchmark.startup import ALL, BESIDE, COMMANDS, OTHERS, Version
from lmtrain.benchmark.startup_process import FUNCTIONS, IMPORTS, PHASES, UNAVOIDABLE, Phases
from lmtrain.commands.benchmark import main
from lmtrain.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_phase_of_a_start_is_measured(
    tmp_path: Path, token_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(startup, "COMMANDS", {})  # their starts are tested below
    options = ["--rounds=1", "--json=numbers.json", f"--against={ROOT}"]
    assert main(["startup", *TINY, f"data.path={token_folder}", *options]) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    (measured,) = numbers["wall_and_cpu_seconds"]
    assert measured.keys() == {"this version", ROOT.name}
    for seconds in measured.values():
        walls = {row: wall for row, (wall, _) in seconds.items()}
        assert all(walls[phase] > 0 for phase in PHASES), walls
        assert all(cpu >= 0 for _, cpu in seconds.values())
        assert walls[ALL] == pytest.approx(sum(walls[phase] for phase in PHASES))
        assert walls[BESIDE] == pytest.approx(walls[ALL] - sum(walls[phase] for phase in UNAVOIDABLE))
        assert walls.keys() == {*PHASES, ALL, BESIDE, OTHERS}
    assert not [*tmp_path.glob("outputs*")]  # the runs were in a temporary folder
    printed = capsys.readouterr().out
    assert all(phase in printed for phase in PHASES)


def test_a_version_reads_the_configs_of_its_own_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that one version does not know must not come from conf/ of the other one."""
    here, before, elsewhere = tmp_path / "here", tmp_path / "before", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for checkout in (here, before):
        shutil.copytree(ROOT / "lmtrain", checkout / "lmtrain", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "conf", checkout / "conf")
    with open(here / "conf" / "trainer" / "default.yaml", "a", encoding="utf-8") as file:
        file.write("a_new_key: 1\n")
    without_data = [sys.executable, "-P", "-m", "lmtrain", "data=tokens", "data.path=nowhere"]
    monkeypatch.chdir(here)
    with pytest.raises(ConfigError, match=r"^data\.path=nowhere"):
        startup.run(without_data, Version(before), 0)
    with pytest.raises(ConfigError, match="a_new_key"):
        startup.run(without_data, Version(), 0, {"PYTHONPATH": str(before)})
    monkeypatch.chdir(elsewhere)
    assert Version(before).directory is None  # conf/ of a user holds for both


@pytest.mark.slow
def test_the_timed_commands_end_with_the_expected_code(token_folder: Path) -> None:
    for more, code in COMMANDS.values():
        wall, cpu = startup.seconds_of_command(Version(), more, code)
        assert 0 < wall
        assert 0 < cpu
    with pytest.raises(ConfigError, match=r"^optimizer\.lr=x"):
        startup.seconds_of_command(Version(), ["optimizer.lr=x"], 0)
    with pytest.raises(RuntimeError, match=r"--help ended with 0"):
        startup.seconds_of_command(Version(), ["--help"], 2)


@pytest.mark.slow
def test_the_measured_functions_exist() -> None:
    """A function that has moved would silently count as another phase."""
    for module, functions in FUNCTIONS.items():
        for name in functions:
            place = importlib.import_module(module)
            for attribute in name.split("."):
                place = getattr(place, attribute)
            assert callable(place)
    assert {*IMPORTS.values(), *(phase for functions in FUNCTIONS.values() for phase in functions.values())} <= {
        *PHASES
    }


def test_a_phase_inside_another_one_counts_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5.0]
    monkeypatch.setattr(startup_process.time, "perf_counter", lambda: now[0])
    phases = Phases(started=2.0)

    def wait(seconds: float) -> None:
        now[0] += seconds

    inner = phases.measured(wait, "inner")

    def both() -> None:
        wait(1)
        inner(10)
        wait(2)

    phases.measured(both, "outer")()

    def check_model_size() -> None:
        inner(100)

    phases.measured(check_model_size, "size")()
    assert phases.wall == {
        startup_process.INTERPRETER: 3,
        startup_process.CONFIG: 0,
        "outer": 3,
        "inner": 10,
        "size": 100,
    }


def test_another_folder_must_be_a_checkout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"--against {tmp_path}: is not a checkout of lmtrain; give a folder"):
        main(["startup", f"--against={tmp_path}"])
