"""How torch allocates the memory of a GPU."""

import os
import subprocess
import sys

import pytest
import torch

from lmtrain.hardware.allocators import ALLOCATOR_VARIABLES, cuda_allocator_settings, let_cuda_segments_grow
from lmtrain.system import System


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ALLOCATOR_VARIABLES:
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)


def test_segments_grow_unless_the_user_has_set_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda_allocator_settings() == ""
    let_cuda_segments_grow()
    assert cuda_allocator_settings() == "expandable_segments:True"
    for name in ALLOCATOR_VARIABLES:
        monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
        monkeypatch.setenv(name, "max_split_size_mb:64")
        let_cuda_segments_grow()
        assert cuda_allocator_settings() == "max_split_size_mb:64"
        monkeypatch.delenv(name)


def test_on_a_cpu_nothing_is_set() -> None:
    assert System(device="cpu").allocator() is None
    assert not any(name in os.environ for name in ALLOCATOR_VARIABLES)


SEGMENTS = """
import torch
from lmtrain.system import System
system = System(device="cuda", compile=False)
kept = torch.ones(1 << 22, device="cuda")
print(system.allocator(), all(segment["is_expandable"] for segment in torch.cuda.memory_snapshot()))
"""


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_segments_are_expandable() -> None:
    printed = subprocess.check_output([sys.executable, "-c", SEGMENTS], text=True, timeout=300)
    assert printed.split() == ["expandable_segments:True", "True"]
