"""Jobs get their GPUs from a fake `nvidia-smi`, which lists the GPUs of a machine."""

import os
from pathlib import Path

import pytest

from lmtrain.errors import ConfigError
from lmtrain.machine import THREADS, VISIBLE, available_cores, visible_gpus
from lmtrain.sweep.gpus import slot_variables

Machine = pytest.MonkeyPatch

MIG = """GPU 0: NVIDIA H200 (UUID: GPU-aaaa)
  MIG 3g.71gb     Device  0: (UUID: MIG-1111)
  MIG 3g.71gb     Device  1: (UUID: MIG-2222)
GPU 1: NVIDIA H200 (UUID: GPU-bbbb)
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    (tmp_path / "nvidia-smi").write_text(f'#!/bin/sh\n[ "$*" = -L ] && cat {tmp_path}/listed\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    (tmp_path / "listed").write_text("".join(f"GPU {n}: NVIDIA H200 (UUID: GPU-{n})\n" for n in range(4)))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.delenv(THREADS, raising=False)
    return monkeypatch


def test_the_visible_gpus_are_found(machine: Machine, tmp_path: Path) -> None:
    assert visible_gpus() == ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]
    (tmp_path / "listed").write_text(MIG)
    assert visible_gpus() == ["MIG-1111", "MIG-2222", "GPU-bbbb"]
    for visible, names in (("2,0", ["2", "0"]), ("MIG-2222", ["MIG-2222"]), ("", []), ("1,-1,2", ["1"])):
        machine.setenv(VISIBLE, visible)
        assert visible_gpus() == names
    machine.delenv(VISIBLE)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")  # no driver
    assert visible_gpus() == []


def test_each_job_gets_its_own_gpus_and_more_jobs_share_them_evenly(machine: Machine) -> None:
    def gpus_of(n_jobs: int | None, gpus_per_job: int) -> list[str]:
        return [slot[VISIBLE] for slot in slot_variables(n_jobs, gpus_per_job)]

    assert gpus_of(None, 1) == ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]
    assert gpus_of(2, 1) == ["GPU-0", "GPU-1"]
    assert gpus_of(8, 1) == ["GPU-0", "GPU-1", "GPU-2", "GPU-3"] * 2
    assert gpus_of(None, 2) == ["GPU-0,GPU-1", "GPU-2,GPU-3"]
    assert gpus_of(None, 3) == ["GPU-0,GPU-1,GPU-2"]
    assert gpus_of(2, 0) == ["", ""]  # on the CPU
    with pytest.raises(ConfigError, match="gpus_per_job=5: only 4 visible here"):
        slot_variables(1, 5)


def test_each_process_of_a_job_gets_a_gpu(machine: Machine) -> None:
    assert [slot[VISIBLE] for slot in slot_variables(None, 1, 2)] == ["GPU-0,GPU-1", "GPU-2,GPU-3"]
    assert [slot[VISIBLE] for slot in slot_variables(None, 3, 2)] == ["GPU-0,GPU-1,GPU-2"]
    assert [slot[VISIBLE] for slot in slot_variables(2, 0, 8)] == ["", ""]
    with pytest.raises(ConfigError, match="world_size=8: each process needs a GPU, and only 4 visible here"):
        slot_variables(None, 1, 8)
    machine.setenv(VISIBLE, "")
    assert slot_variables(2, 1, 8) == [{THREADS: str(max(1, available_cores() // 16))}] * 2


def test_jobs_on_a_cpu_share_its_cores(machine: Machine) -> None:
    machine.setenv(VISIBLE, "")
    assert slot_variables(None, 1) == [{}]
    assert slot_variables(3, 1) == [{THREADS: str(max(1, available_cores() // 3))}] * 3
    machine.setenv(THREADS, "7")
    assert slot_variables(3, 1) == [{}] * 3
    with pytest.raises(ConfigError, match="gpus_per_job=2: only 0 visible here; give at most 1"):
        slot_variables(1, 2)
    with pytest.raises(ConfigError, match="n_jobs=0: give a whole number, 1 or more"):
        slot_variables(0, 1)
