"""Device, dtype, memory and random generators."""

import os
import platform
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmtrain.hardware.compilation import missing_to_compile
from lmtrain.system import System


def test_auto_on_a_cpu() -> None:
    system = System(device="cpu")
    assert system.dtype is torch.float32
    assert not system.compiles
    assert not system.scaler().is_enabled()
    assert system.peak_flops() is None
    assert 0.01 < system.memory_gb() < 1000
    assert "cpu (" in system.describe()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_computes_products_in_16_bits_and_the_loss_in_32(dtype: Any) -> None:
    system = System(device="cpu", dtype=dtype)
    x, w = torch.randn(3, 4), torch.randn(5, 4)
    with system.autocast():
        logits = torch.nn.functional.linear(x, w)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2]))
    assert logits.dtype is getattr(torch, dtype)
    assert loss.dtype is torch.float32
    assert system.scaler().is_enabled() == (dtype == "float16")


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda:99", "this machine has"), ("cuda:7", "this machine has")],
)
def test_a_missing_device_is_refused(device: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"system.device={device}: .*{message}"):
        System(device=device)


def test_without_a_compiler_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"system.compile=true: .* g\+\+ is not in PATH; .* system.compile=false"):
        System(device="cpu", compile=True)
    assert not System(device="cpu").compiles
    monkeypatch.setenv("CC", "no-such-cc")
    assert "CC=no-such-cc does not exist" in (missing_to_compile("cuda") or "")
    (tmp_path / "no-such-cc").touch(0o755)
    assert "compiler" not in (missing_to_compile("cuda") or "")


def draws() -> list[Any]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.randn(3).tolist()]


def test_restored_generators_continue_where_they_were() -> None:
    system = System(device="cpu")
    system.seed(3)
    draws()  # leaves a second Gaussian cached in python's generator and in numpy's
    state = {name: tensor.clone() for name, tensor in system.generator_state().items()}
    expected = [draws() for _ in range(3)]
    system.seed(4)
    assert draws() != expected[0]
    system.load_generator_state(state)
    assert [draws() for _ in range(3)] == expected


def test_seeding_repeats_all_draws() -> None:
    system = System(device="cpu")
    runs = []
    for _ in range(2):
        system.seed(2**40 + 5)
        runs.append(draws())
    assert runs[0] == runs[1]


PAGE_FAULTS = """
import ctypes, resource, sys, torch
from lmtrain.system import System
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page would be one fault for 512
System(device="cpu", keep_freed_memory=sys.argv[1] == "True", threads=1)
def step():
    parts = [torch.ones(1 << 20) for _ in range(20)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc's malloc")
def test_kept_memory_saves_page_faults() -> None:
    # glibc adapts its threshold to the blocks that were freed, unless the environment fixes it.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)}
    faults = {}
    for keep in (True, False):
        command = [sys.executable, "-c", PAGE_FAULTS, str(keep)]
        faults[keep] = int(subprocess.check_output(command, text=True, timeout=120, env=environment))
    pages = 5 * 20 * (4 << 20) // resource.getpagesize()  # five steps of twenty tensors
    assert faults[False] > pages / 2
    assert faults[True] < faults[False] / 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_restored_cuda_generator_continues_where_it_was() -> None:
    system = System(device="cuda")
    system.seed(3)
    state = system.generator_state()
    expected = torch.randn(5, device="cuda")
    torch.randn(5, device="cuda")
    system.load_generator_state(state)
    assert torch.equal(torch.randn(5, device="cuda"), expected)
    assert system.measure_flops() > 1e12
