"""Data in whole runs: mixtures and masked documents train, bad input is reported in one line, and no step is lost."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command_line import Cli
from support.tokens import TINY, VOCAB_SIZE, write_tokens

from lmtrain.checkpoint.files import load_checkpoint
from lmtrain.config.compose import compose
from lmtrain.config.preflight import preflight
from lmtrain.data.meta import read_meta
from lmtrain.data.stored_tokenizer import save_tokenizer
from lmtrain.data.tokenizer import Bytes
from lmtrain.errors import ConfigError
from lmtrain.files.metrics import read_metrics

SMALL = [text for text in TINY if not text.startswith("data=")]


def config_error(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        preflight(compose(overrides))
    return str(caught.value)


def replace_meta(folder: Path, **changes: Any) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | changes))


# Runs


@pytest.mark.slow
def test_a_killed_run_on_a_mixture_resumes_to_the_same_losses(tmp_path: Path, cli: Cli) -> None:
    for name in ("books", "code"):
        write_tokens(tmp_path / name, train=3000)
    mixture = [
        "data=mixture",
        "data.paths={books: books, code: code}",
        "data.weights={books: 0.7, code: 0.3}",
        "data.max_epochs={code: 1}",
        "trainer.max_steps=60",
        "trainer.log_interval=1",
        *(text for text in SMALL if not text.startswith(("trainer.max_steps", "trainer.log_interval"))),
    ]
    done = cli(*mixture, "hydra.run.dir=never")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1.8 epochs of books, 0.77 epochs of code" in done.stdout  # 336 and 144 samples, of 187 blocks each
    process = cli.start(*mixture, "hydra.run.dir=killed")
    lines = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not lines.exists() or len(lines.read_text().splitlines()) < 20:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    done = cli("resume=killed")
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [
        [line["train/loss"] for line in read_metrics(tmp_path / run / "metrics.jsonl")] for run in ("never", "killed")
    ]
    assert len(losses[0]) == 60
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_file_that_becomes_shorter_stops_the_run_with_everything_saved(tmp_path: Path, cli: Cli) -> None:
    folder = write_tokens(tmp_path / "tokens")
    whole = (folder / "train.bin").read_bytes()
    # Large batches, so that only a few are read at once.
    overrides = ["data=tokens", f"data.path={folder}", *SMALL, "data.batch_size=32", "data.block_size=64"]
    long = [
        *overrides,
        "trainer.max_steps=100000",
        "trainer.checkpoint_interval=100000",
        "trainer.eval_interval=100000",
        "system.compile=false",  # auto would compile a run of this length
    ]
    process = cli.start(*long, "hydra.run.dir=out")
    lines = tmp_path / "out" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not lines.exists() or len(lines.read_text().splitlines()) < 20:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.truncate(folder / "train.bin", 1000)
    assert process.wait() == 2
    assert len(process.stderr.splitlines()) == 1
    assert "train.bin: became shorter while it was read, from 8,000 to 1,000 bytes" in process.stderr
    assert "to continue after fixing that: python -m lmtrain resume=out" in process.stderr
    logged = read_metrics(lines)[-1]["step"]
    assert load_checkpoint(tmp_path / "out" / "checkpoints" / "latest").state["train"]["step"] == logged
    (folder / "train.bin").write_bytes(whole)
    done = cli("resume=out", f"trainer.max_steps={int(logged) + 3}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["step"] for line in read_metrics(lines)] == list(range(1, int(logged) + 4))


@pytest.mark.slow
def test_own_text_is_prepared_trained_on_and_sampled(tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    for number in range(30):
        words = np.random.default_rng(number).choice(["one", "two", "three", "vier", "fünf"], 300)
        (folder / f"{number}.txt").write_text(" ".join(words))
    prepared = ["data=text", "prepare.source.files=books/*.txt", "data.path=tokens", "prepare/tokenizer=bytes"]
    held_out = ["prepare/holdout=documents", "prepare.holdout.val_share=0.2", "prepare.holdout.test_share=0.2"]
    done = cli("prepare", *prepared, *held_out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(split.documents for split in read_meta(tmp_path / "tokens").splits.values()) == 30
    assert "vocabulary 257" in done.stdout
    assert "is up to date: it was made from this text" in cli("prepare", *prepared, *held_out).stdout
    (folder / "3.txt").write_text("changed")
    again = cli("prepare", *prepared, *held_out)
    assert again.returncode == 2
    assert "books/3.txt" in again.stderr
    run = cli("data=tokens", "data.path=tokens", "model.mask_documents=true", *SMALL, "hydra.run.dir=out")
    assert run.returncode == 0, run.stdout + run.stderr
    resumed = cli("resume=out", "trainer.max_steps=14")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "end_of_text: 256" in (tmp_path / "out" / "config.yaml").read_text()
    tested = cli("evaluate", "out", "--split", "test", "--checkpoint", "latest")
    assert tested.returncode == 0, tested.stderr
    assert " test " in tested.stdout
    shutil.rmtree(tmp_path / "tokens")  # sampling needs only the run
    sampled = cli("sample", "out", "--prompt", "fünf", "--tokens", "20", "--checkpoint", "latest")
    assert sampled.returncode == 0, sampled.stderr
    assert sampled.stdout.startswith("fünf")
    assert cli("sample", "out", "--tokens", "20").returncode == 0


# Bad input


def test_a_tokenizer_that_did_not_make_the_tokens_is_refused(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path / "tokens")
    replace_meta(folder, tokenizer={"kind": "bpe", "file": "tokenizer.json", "sha256": "0" * 64})
    (folder / "tokenizer.json").write_text("{}")
    message = config_error("data=tokens", f"data.path={folder}", *SMALL)
    assert (
        message
        == f"{folder}/tokenizer.json: not the tokenizer that {folder} was made with, so its ids would mean other text"
    )


def test_evaluating_on_tokens_of_another_tokenizer_is_refused(tmp_path: Path, cli: Cli) -> None:
    folder = write_tokens(tmp_path / "tokens")
    done = cli("data=tokens", f"data.path={folder}", *SMALL, "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr
    other = write_tokens(tmp_path / "other")
    replace_meta(other, tokenizer={"kind": "bpe", "file": "tokenizer.json", "sha256": "0" * 64})
    save_tokenizer(tmp_path / "out", Bytes().fit(None))  # type: ignore[arg-type]  # it needs no text
    done = cli("evaluate", "out", "--data", "other")
    assert done.returncode == 2
    assert "not the tokenizer that other was made with" in done.stderr


def test_an_id_beyond_the_vocabulary_is_reported_in_one_line(tmp_path: Path, cli: Cli) -> None:
    folder = write_tokens(tmp_path / "tokens")
    (folder / "meta.json").unlink()
    done = cli("data=tokens", f"data.path={folder}", "model.vocab_size=40", *SMALL, "hydra.run.dir=out")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"config error: {folder}/train.bin: token ")
    assert "not below the vocabulary size of 40" in line


def test_damaged_validation_tokens_lose_no_step(tmp_path: Path, cli: Cli) -> None:
    folder = write_tokens(tmp_path / "tokens")
    whole = (folder / "val.bin").read_bytes()
    tokens = np.fromfile(folder / "val.bin", "<u2")
    tokens[300] = 60_000
    tokens.tofile(folder / "val.bin")
    done = cli("data=tokens", f"data.path={folder}", *SMALL, "trainer.eval_batches=null", "hydra.run.dir=out")
    assert done.returncode == 2
    assert "val.bin: token 300 is 60000" in done.stderr
    assert (
        load_checkpoint(tmp_path / "out" / "checkpoints" / "latest").state["train"]["step"] == 4
    )  # the first evaluation
    assert [line["step"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl")] == [1, 2, 3]
    evaluated = cli("evaluate", "out")
    assert evaluated.returncode == 2
    assert len(evaluated.stderr.splitlines()) == 1
    # With the file fixed, the run continues with the evaluation.
    (folder / "val.bin").write_bytes(whole)
    done = cli("resume=out", "trainer.max_steps=6")
    assert done.returncode == 0, done.stderr
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"train/loss", "val/loss"} <= lines[3].keys()


def test_more_steps_than_max_epochs_allows_are_refused_before_the_first(tmp_path: Path, cli: Cli) -> None:
    folder = write_tokens(tmp_path / "tokens")  # 249 blocks
    mixture = ["data=mixture", f"data.paths={{a: {folder}}}", "data.weights={a: 1}", "data.max_epochs={a: 1}"]
    done = cli(*mixture, *SMALL, "trainer.max_steps=32")
    assert done.returncode == 2
    assert "trainer.max_steps=32: data.max_epochs allows 249 samples, which are enough for 31 steps" in done.stderr


def test_a_mixture_names_the_source_that_is_missing(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path / "here")
    paths = f"data.paths={{a: {folder}, b: {tmp_path}/gone}}"
    message = config_error("data=mixture", paths, "data.weights={a: 1, b: 2}", *SMALL)
    assert message.startswith(f"data.paths.b={tmp_path}/gone: no such folder")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.weights={a: abc, b: 1}", "data.weights.a=abc: input should be a valid number"),
        ("data.weights={a: 0, b: 1}", "data.weights.a=0: input should be greater than 0"),
        ("data.max_epochs={a: 0.5}", "data.max_epochs.a=0.5: input should be a valid integer"),
    ],
)
def test_wrong_values_inside_a_mixture_are_named_by_their_key(override: str, message: str) -> None:
    weights = [] if "weights" in override else ["data.weights={a: 1, b: 1}"]
    assert config_error("data=mixture", "data.paths={a: x, b: y}", override, *weights, *SMALL).startswith(message)


def test_a_mixture_takes_its_vocabulary_from_its_sources(tmp_path: Path) -> None:
    paths = {name: write_tokens(tmp_path / name) for name in ("a", "b")}
    written = "{" + ", ".join(f"{name}: {path}" for name, path in paths.items()) + "}"
    cfg = preflight(compose(["data=mixture", f"data.paths={written}", "data.weights={a: 1, b: 1}", *SMALL]))
    assert cfg.model.vocab_size == VOCAB_SIZE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9 au lait", r"a.txt: .*UTF-8"),
        ("ä".encode("utf-16"), r"a.txt: .*UTF-16"),
        (b"", r"a.txt"),
    ],
)
def test_files_without_valid_text_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_bytes(content)
    overrides = ["data=text", "prepare.source.files=a.txt", "data.path=out", *SMALL]
    with pytest.raises(ConfigError, match=message):
        preflight(compose(overrides))
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_instead_of_files_gets_a_suggestion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("x")
    assert "books/*" in config_error("data=text", "prepare.source.files=books", "data.path=out", *SMALL)


@pytest.mark.parametrize("tokenizer", ["bytes", "characters", "bpe"])
@pytest.mark.parametrize("holdout", ["documents", "tail"])
def test_every_tokenizer_works_with_every_holdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str, holdout: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"text {number} of some words " * 30)
    choices = [f"prepare/tokenizer={tokenizer}", f"prepare/holdout={holdout}", "prepare.holdout.val_share=0.2"]
    preflight(compose(["data=text", "prepare.source.files=*.txt", "data.path=out", *choices, *SMALL]))
    meta = read_meta(tmp_path / "out")
    assert meta is not None
    assert meta.tokenizer.kind == tokenizer
    assert meta.recipe["holdout"]["val_share"] == 0.2
    assert "workers" not in meta.recipe
