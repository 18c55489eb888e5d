"""Tests of `export`: trained runs, wrong options, a full disk, and interruptions."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.command_line import Cli
from support.tokens import TINY, write_tokens

from lmtrain.commands.export import main
from lmtrain.errors import ConfigError
from lmtrain.run.reading.loaded import load_model

SHORT = ["trainer.max_steps=4", "trainer.checkpoint_interval=2", "trainer.eval_interval=2", "trainer.ema_decay=0.9"]


@pytest.fixture(scope="module")
def folder(module_cli: Cli) -> Path:
    """Return a folder with a run whose checkpoints have a running mean of the weights."""
    write_tokens(module_cli.folder / "data")
    done = module_cli(*TINY, *SHORT, "data.path=data", "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr
    return module_cli.folder


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_the_weights_are_those_that_evaluate_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (2, 4):
        assert main(["out", "--to", "hf", str(tmp_path / f"model-{step}"), "--checkpoint", str(step)]) == 0
        found = load_file(tmp_path / f"model-{step}" / "model.safetensors")
        expected = load_model(Path("out"), str(step), "cpu").model.state_dict()
        assert torch.equal(found["model.norm.weight"], expected["norm.weight"])
        assert torch.equal(found["model.embed_tokens.weight"], expected["embedding.weight"])
        assert f"exported step {step} of out" in capsys.readouterr().out
    config = json.loads((tmp_path / "model-2" / "config.json").read_text())
    assert (config["architectures"], config["vocab_size"]) == (["LlamaForCausalLM"], 61)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out", "--to", "onnx", "x"], "--to onnx: no such format; choose from hf"),
        (["out", "--to", "hf", "x", "--dtype", "int8"], "--dtype int8: not one of float32, bfloat16, float16"),
        (["out", "--to", "hf", "x", "--checkpoint", "3"], "there are steps 2, 4"),
        (["out", "--to", "hf", "data"], "--to hf data: exists already and is not empty"),
        (["data", "--to", "hf", "x"], "data"),
    ],
)
def test_wrong_options_are_refused_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        main(arguments)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not Path("x").exists()


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: writing fails in the middle of the weights."""
    done = subprocess.run(
        [sys.executable, "-m", "lmtrain", "export", "out", "--to", "hf", str(tmp_path / "model")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("config error: ")
    assert "model.safetensors: can't be written" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_export_leaves_nothing_that_looks_finished(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lmtrain", "export", "out", "--to", "hf", str(tmp_path / "model")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None and not list(tmp_path.iterdir()):
            time.sleep(0.0005)
        os.kill(process.pid, number)
    finally:
        code = process.wait(timeout=60)
    if code == 0:  # it was faster than the signal
        assert (tmp_path / "model" / "model.safetensors").is_file()
        return
    assert not (tmp_path / "model").exists()
    assert all(path.name.startswith(".tmp-") for path in tmp_path.iterdir())
