"""The number format that `auto` means depends on the machine and on the model, and a run keeps it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tokens import TINY, write_tokens

from lmtrain import ConfigError, load_run, train
from lmtrain.checkpoint.kept_choices import kept_choices
from lmtrain.config.check import check
from lmtrain.config.compose import compose
from lmtrain.hardware.cpu_speed import CpuSpeed, machine_key
from lmtrain.hardware.number_format import choose_on_cpu, lacks_hardware, may_gain
from lmtrain.hardware.work import Work, products_per_cast
from lmtrain.micro_batch.search import TimedSize
from lmtrain.parts import build_model, work_of
from lmtrain.system import System

AMX, AVX512_BF16, NOISY_AMX = CpuSpeed(100e9, 700e9), CpuSpeed(100e9, 170e9), CpuSpeed(150e9, 460e9)
EMULATED, NONE = CpuSpeed(100e9, 10e9), CpuSpeed(100e9, 0.0)


def work(*overrides: str) -> Work:
    cfg = check(compose(list(overrides)))
    cfg.model.vocab_size = cfg.model.vocab_size or 4096
    with torch.device("meta"):
        return work_of(cfg, build_model(cfg))


@pytest.mark.parametrize("experiment", ["quickstart", "shakespeare_char", "tiny", "smoke"])
def test_small_models_stay_in_float32_on_every_cpu(experiment: str) -> None:
    small = work(f"experiments={experiment}")
    assert not may_gain(small)
    assert {choose_on_cpu(small, speed) for speed in (AMX, AVX512_BF16, EMULATED, NONE)} == {"float32"}


@pytest.mark.parametrize("sizes", [[], ["data.batch_size=4", "data.block_size=256"], ["model=gpt2"]])
def test_large_models_use_bfloat16_where_the_cpu_has_hardware_for_it(sizes: list[str]) -> None:
    large = work(*sizes)
    assert may_gain(large)
    chosen = [choose_on_cpu(large, speed) for speed in (AMX, NOISY_AMX, EMULATED, NONE)]
    assert chosen == ["bfloat16", "bfloat16", "float32", "float32"]
    assert choose_on_cpu(work(), AVX512_BF16) == "bfloat16"


def test_the_work_per_cast_grows_with_width_and_tokens() -> None:
    def linear(width: int) -> torch.nn.Module:
        return torch.nn.Linear(width, width)

    assert products_per_cast(linear(8), 8) == 8**3 / (2 * 8 * 8 + 8 * 8)
    assert products_per_cast(linear(8), 8) < products_per_cast(linear(16), 8) < products_per_cast(linear(16), 16)
    assert products_per_cast(torch.nn.ReLU(), 8) == products_per_cast(torch.nn.Embedding(64, 64), 8) == 0


def test_until_it_chooses_a_cpu_computes_in_float32() -> None:
    assert System(device="cpu").dtype_name == "float32"


def test_what_is_written_in_the_config_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim_speed(tmp_path, monkeypatch, AMX)
    system = System(device="cpu", dtype="float32", compile=False)
    system.choose(Work(1e20, 1e3), {"system.dtype": "bfloat16", "system.compile": True})
    assert (system.dtype_name, system.compiles, system.resolved) == ("float32", False, {})
    system = System(device="cpu", compile=False)
    system.choose(Work(1e20, 1e3), {})
    assert (system.dtype_name, system.resolved) == ("bfloat16", {"system.dtype": "bfloat16"})


@pytest.mark.parametrize("before", ["float64", "float8", 3, ["bfloat16"]])
def test_a_kept_format_that_is_none_is_replaced_with_a_warning(before: Any, caplog: pytest.LogCaptureFixture) -> None:
    system = System(device="cpu")
    system.choose(Work(0, 0), {"system.dtype": before})
    assert system.dtype_name == "float32"
    assert "which this machine lacks" in caplog.text


def test_float8_is_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match=r"^system\.dtype=float8: needs a GPU; use bfloat16 or auto$"):
        System(device="cpu", dtype="float8")


@pytest.mark.parametrize(
    ("capability", "torchao", "dtype", "reason"),
    [
        ((9, 0), True, "float8", None),
        ((8, 9), False, "float8", "pip install 'lmtrain[float8]'"),
        ((8, 0), True, "float8", "has no 8-bit products"),
        ((7, 5), True, "bfloat16", "use float16 or auto"),
        ((7, 5), True, "float16", None),
    ],
)
def test_formats_that_a_gpu_lacks_are_refused(
    capability: tuple[int, int], torchao: bool, dtype: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("lmtrain.hardware.number_format.is_installed", lambda library: torchao)
    found = lacks_hardware(torch.device("cuda"), dtype)
    assert (found is None) == (reason is None)
    assert reason is None or reason in str(found)


def claim_speed(cache: Path, monkeypatch: pytest.MonkeyPatch, speed: CpuSpeed) -> None:
    """Make the cache folder say that this CPU has a speed."""
    monkeypatch.setenv("LMTRAIN_CACHE", str(cache))
    file = cache / "cpu-speed" / f"{machine_key()}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"float32": speed.float32, "bfloat16": speed.bfloat16}), encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps for which `auto` became bfloat16."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("lmtrain.hardware.number_format.MIN_SAVING", 0.0)
        claim_speed(folder / "here", patch, AMX)
        tokens = write_tokens(folder / "data" / "tiny")
        sizes = [text for text in TINY if not text.startswith("trainer.gradient_acc")]
        whole = "trainer.global_batch_size=8"
        train([*sizes, whole, f"data.path={tokens}", "trainer.max_steps=4", "hydra.run.dir=run"])
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, on a machine where bfloat16 is slow from now on."""
    shutil.copytree(finished / "run", tmp_path / "run")
    shutil.copytree(finished / "here", tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lmtrain.hardware.number_format.MIN_SAVING", 0.0)
    claim_speed(tmp_path / "elsewhere", monkeypatch, EMULATED)
    return tmp_path / "run"


@pytest.mark.slow  # it trains four runs
def test_a_resume_and_a_fork_keep_the_format_on_a_slower_machine(run: Path, finished: Path) -> None:
    choices = {"system.dtype": "bfloat16", "system.compile": False, "model.attention": "flash"}
    assert load_run(run).environment["resolved"] == choices
    resumed = train(["trainer.max_steps=8"], resume=run)
    (again,) = resumed.environment["resumes"]
    assert again["resolved"]["system.dtype"] == again["evaluation"]["dtype"] == "bfloat16"
    assert "this CPU is slow in it" in (run / "train.log").read_text(encoding="utf-8")
    forked = train(["trainer.max_steps=12", "hydra.run.dir=forked"], fork=run)
    assert forked.environment["resolved"]["system.dtype"] == "bfloat16"
    new = train([*TINY, f"data.path={finished}/data/tiny", "trainer.max_steps=4", "hydra.run.dir=new"])
    assert new.environment["resolved"]["system.dtype"] == "float32"


def test_a_fork_times_its_micro_batches_in_the_format_that_it_keeps(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def trial(cfg: Any, kept: Any) -> list[TimedSize]:
        given.append(kept)
        return [TimedSize(4, [1.0], 1)]

    monkeypatch.setattr("lmtrain.micro_batch.find._run_trial", trial)
    forked = train(["data.batch_size=auto", "trainer.max_steps=5", "hydra.run.dir=forked"], fork=run)
    assert given == [{"system.dtype": "bfloat16", "system.compile": False, "model.attention": "flash"}]
    assert forked.environment["resolved"] == {**given[0], "data.batch_size": 4}


def test_how_a_global_batch_is_cut_changes_no_choice() -> None:
    """So `data.batch_size=auto`, which depends on the noise of a measurement, changes it neither."""
    whole = ["trainer.global_batch_size=64", "data.block_size=32"]
    works = {work(*whole, f"data.batch_size={size}") for size in (1, 4, 64, "auto")}
    assert works == {work("data.batch_size=64", "trainer.gradient_accumulation_steps=1", "data.block_size=32")}


def test_the_users_format_wins_in_a_resume(run: Path) -> None:
    resumed = train(["trainer.max_steps=8", "system.dtype=float32", "allow_changes=system.dtype"], resume=run)
    assert resumed.environment["resumes"][0]["evaluation"]["dtype"] == "float32"
    assert "system.dtype" not in resumed.environment["resumes"][0]["resolved"]


def test_a_resume_may_write_out_what_auto_became(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"would change the run \(system\.dtype: auto → float32\)"):
        train(["trainer.max_steps=8", "system.dtype=float32"], resume=run)
    resumed = train(["trainer.max_steps=8", "system.dtype=bfloat16"], resume=run)
    (again,) = resumed.environment["resumes"]
    assert again["evaluation"]["dtype"] == "bfloat16"
    assert "system.dtype" not in "".join(again["changes"])


def test_a_run_of_an_earlier_version_keeps_what_it_computed_in(run: Path) -> None:
    record = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    del record["resolved"]
    (run / "environment.json").write_text(json.dumps(record), encoding="utf-8")
    assert kept_choices(run) == {"system.dtype": "bfloat16", "system.compile": False}
    (run / "environment.json").write_text(json.dumps({"device": "unknown"}), encoding="utf-8")
    assert kept_choices(run) == {}


def test_an_evaluation_computes_in_the_format_of_the_run_if_the_cpu_is_fast_in_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_run(run).load().system.dtype_name == "float32"
    monkeypatch.setenv("LMTRAIN_CACHE", str(tmp_path / "here"))
    assert load_run(run).load().system.dtype_name == "bfloat16"
