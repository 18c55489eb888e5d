"""When a run is compiled, in which mode, and where the compiled code is kept."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compiler import NEEDS_A_COMPILER
from support.tiny_trainer import make_trainer, tiny_llama

from lmtrain.files.metrics import read_metrics
from lmtrain.hardware.compilation import (
    FASTEST,
    SLOWEST,
    keep_compiled_code,
    pays_on_cpu,
    pays_on_every_cpu,
    remove_cut_libraries,
    with_cuda_graphs,
)
from lmtrain.hardware.cpu_speed import CpuSpeed, machine_key
from lmtrain.hardware.work import Work
from lmtrain.system import System

XEON = CpuSpeed(100e9, 700e9)
TRAINING_TOKENS = 5000 * 4 * 16 * 512
PRODUCTION = Work(0.36e9 * TRAINING_TOKENS, 280)
QUICKSTART = Work(600 * 8 * 128 * 9e6, 87)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_long_runs_are_compiled_on_every_cpu_and_short_ones_on_none_that_is_usual(dtype: str) -> None:
    assert all(pays_on_cpu(PRODUCTION, dtype, speed, 8) for speed in (SLOWEST, XEON, FASTEST))
    assert not pays_on_cpu(QUICKSTART, dtype, XEON, 1)
    assert pays_on_every_cpu(Work(1e9, 1), dtype, 1) is False
    assert pays_on_every_cpu(PRODUCTION, dtype, 2) is True
    assert pays_on_every_cpu(Work(1e14, 1), dtype, 1) is None


def test_it_pays_when_it_saves_twice_the_time_that_it_takes() -> None:
    ten_minutes = Work(600 * 0.7 * 2 * XEON.float32, 1)  # a tenth of it is saved, and 30 s are spent
    assert pays_on_cpu(Work(1.01 * ten_minutes.flops, 1), "float32", XEON, 2)
    assert not pays_on_cpu(Work(0.99 * ten_minutes.flops, 1), "float32", XEON, 2)


@NEEDS_A_COMPILER
def test_the_choice_is_kept() -> None:
    system = System(device="cpu", deterministic=False)
    assert not system.compiles
    system.choose(PRODUCTION, {"system.dtype": "float32"})
    assert system.resolved == {"system.dtype": "float32", "system.compile": True}
    assert system.describe().endswith(", float32, compiled")
    system.choose(PRODUCTION, {"system.dtype": "float32", "system.compile": False})
    assert system.describe().endswith(", float32, eager")
    system.choose(QUICKSTART, {"system.dtype": "float32", "system.compile": True})
    assert system.compiles


def test_without_a_compiler_auto_is_quiet_and_a_kept_choice_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    system = System(device="cpu")
    system.choose(PRODUCTION, {"system.dtype": "float32"})
    assert not system.compiles
    assert not caplog.records
    system.choose(PRODUCTION, {"system.dtype": "float32", "system.compile": True})
    assert not system.compiles
    assert "continues without compilation" in caplog.text


@pytest.mark.parametrize("mode", ["max-autotune", "max-autotune-no-cudagraphs"])
def test_modes_that_time_kernels_are_refused_where_bits_must_repeat(mode: Any) -> None:
    with pytest.raises(ValueError, match=rf"^system\.compile={mode}: .* add system\.deterministic=false"):
        System(device="cpu", compile=mode)


@NEEDS_A_COMPILER
def test_modes_are_named_in_the_description() -> None:
    assert System(device="cpu", compile="default", deterministic=False).describe().endswith(", compiled")
    system = System(device="cpu", compile="reduce-overhead", deterministic=False)
    assert system.describe().endswith(", compiled reduce-overhead")
    assert not system.uses_cuda_graphs


def test_compiled_code_is_kept_by_machine_unless_the_user_chose_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "cache" / "compiled" / machine_key())
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    (tmp_path / "file").touch()
    monkeypatch.setenv("LMTRAIN_CACHE", str(tmp_path / "file" / "cache"))
    keep_compiled_code()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


class Replayed(torch.nn.Module):
    """A model that writes its loss to the same memory in each call, like a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
        self.frozen = torch.nn.Parameter(torch.tensor(1.0), requires_grad=False)
        self.loss = torch.tensor(0.0)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        return None, None if targets is None else self.loss.copy_(tokens.sum())


@NEEDS_A_COMPILER
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no ELF libraries")
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("seconds", [0, 3600])
def test_a_library_whose_linking_was_cut_off_is_removed(tmp_path: Path, share: float, seconds: int) -> None:
    library = tmp_path / "ab" / "kernel.so"
    library.parent.mkdir()
    compiler = os.environ.get("CXX", "g++")
    command = [compiler, "-shared", "-fPIC", "-x", "c++", "-", "-o", str(library)]
    subprocess.run(command, input=b"int f() { return 1; }", check=True)
    os.truncate(library, int(share * library.stat().st_size))
    written = library.stat().st_mtime - seconds
    os.utime(library, (written, written))
    remove_cut_libraries(tmp_path)
    assert library.exists() == (share == 1.0 or seconds == 0)


@pytest.mark.slow  # it imports the compiler
def test_what_a_cuda_graph_returns_is_copied_and_gradients_have_their_own_memory() -> None:
    model = Replayed()
    forward = with_cuda_graphs(model, model)
    one, two = (forward(torch.tensor([float(value)]), torch.tensor([0]))[1] for value in (1, 2))
    assert (one.item(), two.item()) == (1, 2)
    assert forward(torch.tensor([1.0]))[1] is None
    assert model.weight.grad is not None
    assert model.frozen.grad is None


PRODUCT = """
import os, torch
from lmtrain.system import System
system = System(device="cpu", compile=True, threads=1)
system.seed(0)
layer = torch.nn.Linear(32, 32)
loss = system.compile(torch.nn.Sequential(layer, torch.nn.SiLU()))(torch.randn(8, 32)).sum()
loss.backward()
print(loss.item().hex(), layer.weight.grad.double().sum().item().hex(), os.environ["TORCHINDUCTOR_CACHE_DIR"])
"""


@pytest.mark.slow
@NEEDS_A_COMPILER
def test_code_from_an_earlier_run_gives_the_same_bits_and_damaged_code_is_made_again(tmp_path: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"}
    environment = kept | {"LMTRAIN_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", PRODUCT]
    cold = subprocess.check_output(command, text=True, timeout=600, env=environment)
    folder = Path(cold.split()[-1])
    assert folder.parent == tmp_path / "compiled"
    code = sorted(folder.rglob("*.so"))
    assert code
    warm = subprocess.check_output(command, text=True, timeout=600, env=environment)
    assert warm == cold
    assert sorted(folder.rglob("*.so")) == code

    for library in code:  # as a process leaves them that is killed while it links them, an hour ago
        os.truncate(library, library.stat().st_size // 2)
        os.utime(library, (library.stat().st_mtime - 3600,) * 2)
    assert subprocess.check_output(command, text=True, timeout=600, env=environment) == cold


def losses(run: Path) -> list[float]:
    return [line["train/loss"] for line in read_metrics(run / "metrics.jsonl")]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
@pytest.mark.usefixtures("_fresh_compiler")
def test_on_cuda_every_mode_adds_up_the_gradients_of_micro_batches(
    token_folder: Path, tmp_path: Path, mode: Any
) -> None:
    eager = System(device="cuda", dtype="float32", compile=False, tf32=False, deterministic=False)
    compiled = System(device="cuda", dtype="float32", compile=mode, tf32=False, deterministic=False)
    for name, system in (("eager", eager), ("compiled", compiled)):
        trainer = make_trainer(
            token_folder,
            tmp_path / name,
            model=tiny_llama().cuda(),
            system=system,
            gradient_accumulation_steps=3,
            max_steps=8,
        )
        trainer.fit()
    # Eight steps of AdamW at 1e-2 on a loss of 4; rounding of products in float32 is about 1e-6 of a gradient.
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-3)


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    torch.use_deterministic_algorithms(False)
