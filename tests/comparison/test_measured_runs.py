"""Tests with real runs that what they record decides about verdicts."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.tokens import TINY

from lmtrain import train
from lmtrain.comparison.run_comparison import RunComparison, compare
from lmtrain.comparison.runs import load_runs
from lmtrain.data.prepare import Recipe
from lmtrain.data.progress import DataProgress
from lmtrain.data.text.holdout import tail_of_each_document
from lmtrain.data.text.source import TextFiles
from lmtrain.data.tokenizer import BPE, Bytes, CorpusTokenizer

pytestmark = pytest.mark.slow
SHORT = [*TINY, "trainer.max_steps=2", "trainer.eval_interval=1", "model.vocab_size=512", "trainer.eval_batches=null"]


def prepared(folder: Path, texts: str, tokenizer: CorpusTokenizer) -> None:
    with DataProgress() as progress:
        holdout = partial(tail_of_each_document, val_share=0.3)
        Recipe(TextFiles(texts), tokenizer, holdout, 1).prepare(folder, {}, progress)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare one text with two tokenizers, and another text."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "one.txt").write_text("the quick brown fox jumps over the lazy dog; " * 100, encoding="utf-8")
    (folder / "two.txt").write_text("def f(x): return x + 1  # the lazy dog\n" * 100, encoding="utf-8")
    prepared(folder / "bytes", str(folder / "one.txt"), Bytes())
    prepared(folder / "bpe", str(folder / "one.txt"), BPE(300))
    prepared(folder / "other", str(folder / "two.txt"), Bytes())
    return folder


SETTINGS: dict[str, list[str]] = {
    "bytes": ["bytes"],
    "bpe": ["bpe"],
    "other": ["other"],
    "block 8": ["bytes", "data.block_size=8"],
    "part": ["bytes", "trainer.eval_tokens=128"],
    "part in batches of 8": ["bytes", "trainer.eval_tokens=128", "data.batch_size=8"],
    "part of bpe": ["bpe", "trainer.eval_tokens=128"],
    "2 batches": ["bytes", "trainer.eval_batches=2", "data.batch_size=16"],
}


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Path]:
    found = {}
    for name, (data, *overrides) in SETTINGS.items():
        found[name] = folder / "out" / name.replace(" ", "-")
        train([*SHORT, f"data.path={folder / data}", f"hydra.run.dir={found[name]}", *overrides])
    return found


def environment(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    return content


def compared(runs: dict[str, Path], *names: str) -> RunComparison:
    return compare(load_runs([runs[name] for name in names]))


def refusals(comparison: RunComparison) -> list[str]:
    return [str(note) for note in comparison.notes if "no verdict" in str(note)]


def test_two_tokenizers_of_one_text_are_compared_in_bits_per_byte(runs: dict[str, Path]) -> None:
    first, second = (environment(runs[name])["evaluation"]["val"] for name in ("bytes", "bpe"))
    assert first["text"] == second["text"]
    assert first["text_bytes"] == second["text_bytes"] > 0
    assert first["data"] != second["data"]
    assert [own["tokenizer"]["kind"] for own in (first, second)] == ["bytes", "bpe"]
    comparison = compared(runs, "bytes", "bpe")
    assert comparison.metric == "val/bits_per_byte"
    assert refusals(comparison) == []


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ("part", "part of bpe", "prepare the same text with each tokenizer"),
        ("bytes", "other", "evaluate RUN --data FOLDER"),
        ("bytes", "block 8", "data.block_size=8"),
        ("part", "2 batches", "an evaluation of 512 tokens"),
        ("bytes", "part", "an evaluation of the whole split"),
    ],
)
def test_losses_of_something_else_get_no_verdict(runs: dict[str, Path], one: str, other: str, words: str) -> None:
    comparison = compared(runs, one, other)
    assert comparison.metric == "val/loss"
    (refusal,) = refusals(comparison)
    assert words in refusal


def test_batch_sizes_measure_the_same_tokens(runs: dict[str, Path]) -> None:
    names = "part", "part in batches of 8"
    assert [environment(runs[name])["evaluation"]["val"]["tokens"] for name in names] == [128, 128]
    assert refusals(compared(runs, *names)) == []


def test_a_resume_records_a_changed_evaluation(runs: dict[str, Path]) -> None:
    train(["trainer.max_steps=3", "trainer.eval_batches=2"], resume=runs["block 8"])
    recorded = environment(runs["block 8"])
    before, after = recorded["evaluation"], recorded["resumes"][0]["evaluation"]
    assert (before["after_step"], before["val"]["selection"]) == (0, "whole split")
    assert (after["after_step"], after["val"]["selection"]) == (2, "evenly spaced")
