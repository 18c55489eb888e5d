"""Tests of `import` of litgpt's folders and llm.c's files: with data, without, and with data in an experiment."""

from datetime import date
from pathlib import Path

import pytest
from support.command_line import Cli
from support.other_checkpoints import litgpt_weights, llm_c_model, write_litgpt, write_llm_c
from support.tokens import write_tokens

from lmtrain.config.recorded.trust import read_resolved

WRITERS = {
    "gpt2.bin": lambda folder: write_llm_c(folder / "gpt2.bin", llm_c_model(), vocab=64),
    "lit": lambda folder: write_litgpt(folder / "lit", litgpt_weights(), created=date(2026, 1, 1)),
}
RUN = ["hydra.run.dir=run", "logger=[]", "system.device=cpu", "sample_tokens=0"]


@pytest.fixture(params=WRITERS)
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    WRITERS[request.param](tmp_path)
    write_tokens(tmp_path / "tokens")
    return str(request.param)


def test_a_model_without_data_is_imported(name: str, cli: Cli, tmp_path: Path) -> None:
    done = cli("import", name, *RUN)
    assert done.returncode == 0, done.stderr
    assert "next: python -m lmtrain fork=run data.path=DIR" in done.stdout
    cfg = read_resolved(tmp_path / "run" / "config.yaml")
    assert (cfg.data.path, cfg.data.block_size) == ("none", cfg.model.block_size)


@pytest.mark.parametrize("override", ["data.path=tokens", "++data.path=tokens", "experiments=mine"])
def test_data_is_found_however_it_is_given(name: str, override: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    experiment = "# @package _global_\ndata:\n  path: tokens\n"
    (tmp_path / "experiments" / "mine.yaml").write_text(experiment, encoding="utf-8")
    done = cli("import", name, *RUN, override)
    assert done.returncode == 0, done.stderr
    assert "next: python -m lmtrain resume=run" in done.stdout
    assert read_resolved(tmp_path / "run" / "config.yaml").data.path == "tokens"
