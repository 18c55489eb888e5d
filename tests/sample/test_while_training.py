"""Texts that a model writes while it is trained: where they go, and that training is the same with them."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Cli, wait_for_step
from support.tiny_trainer import timeless_metrics
from support.tokens import TINY, write_tokens

from lmtrain import load_run
from lmtrain.data.tokenizer import tokenizer_of_characters

CHARACTERS = {character: number for number, character in enumerate("\n abcdefghijklmnopqrstuvwxyz")}
RUN = [*TINY, "data.path=data", "trainer.max_steps=6", "trainer.eval_interval=3"]
SAMPLES = ["trainer.sample_interval=2", "trainer.sample_prompts=[ab,'']", "trainer.sample_new_tokens=8"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokens(tmp_path / "data")
    tokenizer_of_characters(CHARACTERS).tokenizer.save(str(tmp_path / "data" / "tokenizer.json"))
    return tmp_path


def samples_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_interval_has_a_text_for_each_prompt(cli: Cli, folder: Path) -> None:
    done = cli(*RUN, *SAMPLES, "trainer.max_steps=5", "logger=[csv,tensorboard]", "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr
    found = samples_of(folder / "out")
    assert [(each["step"], each["prompt"]) for each in found] == [
        (step, text) for step in (2, 4, 5) for text in ("ab", "")
    ]
    assert {len(each["text"]) for each in found} == {8}
    assert "sample after step 2: ab▸" in done.stdout
    assert load_run(folder / "out").samples == found


def test_training_is_the_same_to_the_bit(cli: Cli, folder: Path) -> None:
    options = ["model.dropout=0.1", "trainer.ema_decay=0.9"]
    for name, more in (("with", SAMPLES), ("without", [])):
        done = cli(*RUN, *options, *more, f"hydra.run.dir={name}")
        assert done.returncode == 0, done.stderr
    assert timeless_metrics(folder / "with") == timeless_metrics(folder / "without")
    weights = [folder / name / "checkpoints" / "step-00000006" / "model.safetensors" for name in ("with", "without")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not (folder / "without" / "samples.jsonl").exists()


@pytest.mark.slow
def test_no_step_is_written_twice_after_a_kill(cli: Cli, folder: Path) -> None:
    options = [*RUN, *SAMPLES, "trainer.checkpoint_interval=4", "trainer.sample_interval=1"]
    long = [*options, "trainer.max_steps=100000", "scheduler.max_steps=100", "hydra.run.dir=killed"]
    process = cli.start(*long)
    wait_for_step(folder / "killed", 30)
    process.kill()
    last = samples_of(folder / "killed")[-1]["step"]
    done = cli("resume=killed", f"trainer.max_steps={last + 3}")
    assert done.returncode == 0, done.stderr
    found = [(each["step"], each["prompt"]) for each in samples_of(folder / "killed")]
    assert found == [(step, prompt) for step in range(1, last + 4) for prompt in ("ab", "")]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_several_processes_write_the_texts_of_one(cli: Cli, folder: Path, parallel: str) -> None:
    for name, more in (("one", []), ("two", [f"parallel={parallel}", "parallel.world_size=2"])):
        done = cli(*RUN, *SAMPLES, "trainer.sample_new_tokens=4", *more, f"hydra.run.dir={name}", timeout=180)
        assert done.returncode == 0, done.stderr
    assert samples_of(folder / "two") == samples_of(folder / "one")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["trainer.sample_interval=2", "trainer.sample_prompts=[Ab]"], "sample_prompts: the tokenizer does not"),
        (["trainer.sample_interval=0"], "trainer.sample_interval=0"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_the_start(cli: Cli, folder: Path, options: list[str], message: str) -> None:
    done = cli(*RUN, *options, "hydra.run.dir=out")
    assert done.returncode == 2
    assert message in done.stderr
    metrics = folder / "out" / "metrics.jsonl"
    assert not metrics.exists() or not metrics.read_bytes()


def test_a_run_without_a_tokenizer_writes_no_texts(cli: Cli, tmp_path: Path) -> None:
    write_tokens(tmp_path / "data")
    done = cli(*RUN, "trainer.sample_interval=2", "hydra.run.dir=out")
    assert done.returncode == 2
    assert (
        "trainer.sample_interval: needs a tokenizer, which the run's data does not have; set it to null" in done.stderr
    )
    done = cli(*RUN, "trainer.sample_interval=2", "trainer.sample_prompts=[]", "hydra.run.dir=out")
    assert (
        "trainer.sample_prompts=[]: give at least one, such as '', or set trainer.sample_interval to null"
        in done.stderr
    )
