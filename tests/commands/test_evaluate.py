"""Tests of `evaluate`: splits, texts, several models, positions, sources and pairs."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command_line import Cli
from support.tokenizer_samples import CODE, Texts
from support.tokens import TINY

from lmtrain.commands import import_run
from lmtrain.commands.evaluate import main
from lmtrain.data.stored_tokenizer import save_tokenizer
from lmtrain.data.tokenizer import Bytes
from lmtrain.errors import ConfigError

PREPARED = ["prepare.source.files=books/*.txt", "prepare/holdout=documents", "prepare.holdout.val_share=0.3"]
TEXT = "one two three.\n\ntwo one\n\nthree four five one"


@pytest.fixture(scope="module")
def folder(module_cli: Cli) -> Path:
    """Return a folder with runs of two tokenizers, `bytes` with two checkpoints and `bpe`, and a mixture."""
    folder = module_cli.folder
    (folder / "books").mkdir()
    words = np.array(["one", "two", "three", "four", "five"])
    for number in range(40):
        text = " ".join(np.random.default_rng(number).choice(words, 60))
        (folder / "books" / f"{number}.txt").write_text(text, encoding="utf-8")
    (folder / "t.txt").write_text(TEXT, encoding="utf-8")
    prepared = [*PREPARED, "prepare.holdout.test_share=0.2"]
    for name, tokenizer in (("bytes", ["bytes"]), ("bpe", ["bpe", "prepare.tokenizer.vocab_size=280"])):
        choice, *more = tokenizer
        options = ["data=text", f"data.path=data/{name}", f"prepare/tokenizer={choice}", *more, *prepared]
        kept = ["trainer.max_steps=4", "trainer.keep_every=2", "trainer.checkpoint_interval=2"]
        done = module_cli(*TINY, *options, *kept, f"hydra.run.dir={name}")
        assert done.returncode == 0, done.stderr
    paths = "data.paths={bytes: data/bytes, again: data/bytes}"
    mixed = ["data=mixture", paths, "data.weights={bytes: 1, again: 1}", "hydra.run.dir=mixed"]
    done = module_cli(*TINY, *mixed, "trainer.max_steps=2")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "160")


def measured(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--device", "cpu", "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_split_is_the_one_of_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bytes", "--device", "cpu"]) == 0
    plain = capsys.readouterr().out
    (found,) = measured(capsys, "bytes")["models"]
    assert f" {found['loss']:.4f} " in plain
    assert f" {found['bits_per_byte']:.4f} " in plain
    assert found["documents"] > 5
    assert 0 < found["standard_error"] < 0.1


def test_the_test_split_is_measured_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    test, val = (measured(capsys, "bytes", "--split", split)["models"][0] for split in ("test", "val"))
    assert test["name"] == "test"
    assert test["tokens"] != val["tokens"]


def test_several_checkpoints_are_measured_once_each(capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(capsys, "bytes", "--checkpoint", "all,best", "--checkpoint", "latest", "--paired")
    assert [each["step"] for each in found["models"]] == [2, 4]
    (pair,) = found["pairs"]
    assert pair["difference"] == pytest.approx(found["models"][1]["loss"] - found["models"][0]["loss"])
    assert pair["low"] < pair["difference"] < pair["high"]
    assert pair["unit"] == "nats/token"


def test_models_with_other_tokenizers_are_paired_by_bytes_of_the_same_text(capsys: pytest.CaptureFixture[str]) -> None:
    text = ["--text", "t.txt", "--separator", "\n\n"]
    found = measured(capsys, "bytes", "bpe", *text, "--paired")
    one, other = found["models"]
    assert one["documents"] == other["documents"] == 3
    assert one["tokens"] == len(TEXT.replace("\n\n", "").encode()) + 3 > other["tokens"]
    (pair,) = found["pairs"]
    assert pair["unit"] == "bits/byte"
    assert pair["difference"] == pytest.approx(other["bits_per_byte"] - one["bits_per_byte"])
    with pytest.raises(ConfigError, match=r"--paired: bpe has another tokenizer than bytes, .*; give the text with"):
        main(["bytes", "bpe", "--paired", "--device", "cpu"])


def test_more_context_comes_with_a_smaller_stride(capsys: pytest.CaptureFixture[str]) -> None:
    whole, strided = (measured(capsys, "bytes", *more)["models"][0] for more in ([], ["--stride", "4"]))
    assert whole["tokens"] == strided["tokens"]
    early = [each["tokens"] for each in strided["by_position"] if each["last"] <= 8]
    assert sum(early) <= 12  # only those at the start of the split
    assert sum(each["tokens"] for each in whole["by_position"] if each["last"] <= 8) > 12
    for found in (whole, strided):
        summed = sum(each["tokens"] * each["loss"] for each in found["by_position"])
        assert summed / found["tokens"] == pytest.approx(found["loss"])


def test_a_mixture_has_the_loss_of_each_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mixed", "--device", "cpu"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "mixed" in line]
    assert [row[5] for row in rows] == ["bytes", "again", "val"]
    (found,) = measured(capsys, "mixed")["models"]
    assert [part["name"] for part in found["parts"]] == ["bytes", "again"]
    assert found["loss"] == pytest.approx(found["parts"][0]["loss"])
    assert found["tokens"] == 2 * found["parts"][0]["tokens"]


def test_tables_are_printed_beside_a_file_of_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    arguments = ["bytes", "bpe", "--text", "t.txt", "--by-position", "--paired", "--json", str(file)]
    assert main([*arguments, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "tokens before" in printed
    assert "bits/byte" in printed
    assert "one document gives no interval; --separator cuts a text into documents" in printed
    assert len(json.loads(file.read_text(encoding="utf-8"))["models"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["bytes", "--separator", "x"],
            "--separator: is between the documents of a --text that is not .jsonl",
        ),
        (["bytes", "--text", "t.txt", "--separator", ""], "--separator '': is empty"),
        (["bytes", "--text", "t.txt", "--data", "data"], "--text and --data: give either"),
        (["bytes", "--text", "none.txt"], "--text none.txt: no such file"),
        (["bytes", "--paired"], "--paired: needs two different models"),
        (["bytes", "--checkpoint", "best,latest", "--paired"], "--paired: needs two different models"),
        (["bytes", "--text", "t.txt", "--split", "val"], "--split val: leave it out with --text and --tasks"),
        (["", "--by-position"], "the name is empty; give a run directory or a name"),
        (["bytes", "--stride", "999"], "stride=999: must be from 1 to the block size"),
        (["bytes", "--split", "nothing"], "nothing"),
        (["bytes", "--checkpoint", "7"], "no checkpoint '7'"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        main([*arguments, "--device", "cpu"])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [4, 16])
def test_an_imported_gpt2_has_the_loss_of_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    text = CODE[:3_000]
    tokenizer = Bytes().fit(Texts())
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=16, n_embd=32, n_layer=2, n_head=4)).eval()
    for param in theirs.parameters():
        torch.nn.init.normal_(param, std=0.2)
    theirs.save_pretrained(tmp_path / "gpt2")
    save_tokenizer(tmp_path / "gpt2", tokenizer)
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert import_run.main(["gpt2", "hydra.run.dir=run"]) == 0
    capsys.readouterr()
    (found,) = measured(capsys, "run", "--text", "t.txt", "--stride", str(stride))["models"]

    ids = torch.tensor([[256, *tokenizer.encode(text), 256]])
    losses, before = [], 0
    for start in range(0, ids.shape[1] - 1, stride):  # as in transformers' page about fixed-length models
        end = min(start + 16, ids.shape[1] - 1)
        inputs, targets = ids[:, start:end], ids[:, start + 1 : end + 1]
        with torch.no_grad():
            logits = theirs(inputs).logits
        each = torch.nn.functional.cross_entropy(logits[0].float(), targets[0], reduction="none")
        losses.append(each[before - start :].double() if before else each.double())
        before = end
        if end == ids.shape[1] - 1:
            break
    expected = float(torch.cat(losses).mean())
    assert sum(map(len, losses)) == found["tokens"]
    assert math.isclose(found["loss"], expected, rel_tol=1e-6)


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    rows = [{"q": "one two", "options": [" one", " two"], "answer": number % 2} for number in range(4)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {"task": "words", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "q.jsonl"}},
            "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{q}}",
            "doc_to_choice": "{{options}}", "doc_to_target": "{{answer}}", "target_delimiter": "",
            "metric_list": [{"metric": "acc"}]}  # fmt: skip
    (tmp_path / "words.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML, too
    return tmp_path


@pytest.mark.slow
def test_tasks_of_the_harness_are_a_table_or_json(capsys: pytest.CaptureFixture[str], task_folder: Path) -> None:
    tasks = ["--tasks", "words", "--task-folder", str(task_folder), "--device", "cpu"]
    assert main(["bytes", "bpe", *tasks]) == 0
    assert capsys.readouterr().out.count(" words ") == 2
    found = measured(capsys, "bytes", *tasks[:-2], "--limit", "3", "--num-fewshot", "0")
    (metric,) = found["models"][0]["tasks"]
    assert (metric["task"], metric["metric"], metric["samples"]) == ("words", "acc", 3)
    with pytest.raises(ConfigError, match=r"other: no such task in .*; it has words"):
        main(["bytes", *tasks, "--tasks", "other"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "a"], "--tasks: needs --task-folder DIR"),
        (["--tasks", "a", "--task-folder", "none"], "--task-folder none: no such folder"),
        (["--tasks", ",", "--task-folder", "."], "--tasks: is empty"),
        (["--limit", "3"], "are about --tasks; give some"),
        (["--tasks", "a", "--task-folder", ".", "--stride", "2"], "--tasks: bring their own text"),
    ],
)
def test_mistakes_about_tasks_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main(["bytes", *arguments])
