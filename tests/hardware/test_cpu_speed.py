"""The speed of the CPU is measured once a machine, and all processes agree on it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmtrain.hardware.cpu_speed import BFLOAT16_FLAGS, CpuSpeed, cpu_speed, machine_key, measure_cpu_speed
from lmtrain.machine import cache_folder, cpu_flags


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept_file(cache: Path) -> Path:
    return cache / "cpu-speed" / f"{machine_key()}.json"


def test_every_format_with_hardware_is_measured_and_threads_stay_as_they_were() -> None:
    threads = torch.get_num_threads()
    speed = measure_cpu_speed(rounds=2)
    assert torch.get_num_threads() == threads
    assert 1e7 < speed.float32 < 1e14
    assert (speed.bfloat16 > 0) == bool(cpu_flags() & BFLOAT16_FLAGS)
    assert speed.bfloat16_gain == speed.bfloat16 / speed.float32


def test_a_measurement_is_kept_and_used_again(cache: Path) -> None:
    speed = cpu_speed()
    kept = json.loads(kept_file(cache).read_text(encoding="utf-8"))
    assert (kept["float32"], kept["bfloat16"], kept["torch"]) == (speed.float32, speed.bfloat16, torch.__version__)
    assert [path.name for path in kept_file(cache).parent.iterdir()] == [kept_file(cache).name]


@pytest.mark.slow
def test_another_process_uses_what_is_kept(cache: Path) -> None:
    kept_file(cache).parent.mkdir(parents=True)
    kept_file(cache).write_text('{"float32": 2e9, "bfloat16": 5e9}', encoding="utf-8")
    code = "from lmtrain.hardware.cpu_speed import cpu_speed; print(cpu_speed())"
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, timeout=120)
    assert printed.strip() == str(CpuSpeed(2e9, 5e9))


def test_of_two_processes_that_measure_at_once_the_first_counts(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure_slowly() -> CpuSpeed:
        kept_file(cache).parent.mkdir(parents=True)
        kept_file(cache).write_text('{"float32": 1e9, "bfloat16": 3e9}', encoding="utf-8")
        return CpuSpeed(1e9, 1e9)

    monkeypatch.setattr("lmtrain.hardware.cpu_speed.measure_cpu_speed", measure_slowly)
    assert cpu_speed() == CpuSpeed(1e9, 3e9)


@pytest.mark.parametrize("content", ["", "{}", '{"float32": 0, "bfloat16": 1}', '{"float32": "fast", "bfloat16": NaN}'])
def test_a_damaged_file_is_replaced(cache: Path, content: str) -> None:
    kept_file(cache).parent.mkdir(parents=True)
    kept_file(cache).write_text(content, encoding="utf-8")
    speed = cpu_speed()
    assert json.loads(kept_file(cache).read_text(encoding="utf-8"))["float32"] == speed.float32


def test_without_a_folder_to_write_to_the_speed_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LMTRAIN_CACHE", str(tmp_path / "file" / "cache"))
    assert cache_folder() is None
    assert cpu_speed().float32 > 0


def test_the_key_depends_on_the_instructions_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    key = machine_key()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert machine_key() != key
