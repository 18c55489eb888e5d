"""Tests that runs get a verdict only if their losses measure the same, and that every refusal says why."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.synthetic_runs import write_run

from lmtrain.commands.compare import main
from lmtrain.comparison.comparable.measured_alike import measured_alike
from lmtrain.comparison.output.page import as_html
from lmtrain.comparison.output.page_data import page_data
from lmtrain.comparison.output.text_files import as_csv, as_json, as_markdown
from lmtrain.comparison.run_comparison import RunComparison, compare
from lmtrain.comparison.runs import load_runs

SEEDS = (1, 2, 3)


def evaluation(data: str = "a", **changes: Any) -> dict[str, Any]:
    """Return what `environment.json` says about evaluations of the whole split of 10,000 tokens."""
    val = {"split": "val", "data": data * 64, "text": "f" * 64, "text_bytes": 40_000, "vocab_size": 512,
           "tokenizer": {"kind": "bpe", "sha256": "c" * 64}, "block_size": 128, "selection": "whole split",
           "tokens": 10_000, **changes}  # fmt: skip
    return {"after_step": 0, "val": val, "train_eval": None, "mask_documents": False, "dtype": "float32"}


def write_setting(
    folder: Path,
    name: str,
    loss: float,
    record: dict[str, Any] | None,
    changes: dict[str, Any] | None = None,
    **rest: Any,
) -> None:
    """Write three runs of a setting whose losses are near `loss`."""
    environment = (
        {} if record is None else {"data": {"train": "0f8e", "val": record["val"]["data"]}} | {"evaluation": record}
    )
    environment |= rest.pop("environment", {})
    speed = rest.pop("speed", 1.0)
    for seed in SEEDS:
        write_run(
            folder / f"{name}-{seed}",
            {**(changes or {}), "seed": seed},
            final_loss=loss + seed / 1000,
            steps=20,
            eval_interval=10,
            environment=environment,
            speed=speed + seed / 1000,
            **rest,
        )


def compared(folder: Path, **options: Any) -> RunComparison:
    return compare(load_runs([folder]), **options)


def verdicts(comparison: RunComparison) -> str:
    return "\n".join(comparison.conclusions.sentences)


def refused(comparison: RunComparison) -> str:
    """Return the refusal, after a check that there is no verdict and that all outputs can be written."""
    assert "better than" not in verdicts(comparison)
    assert comparison.conclusions.comparisons == []
    for output in (as_csv, as_json, as_markdown, as_html):
        assert output(comparison)
    assert len(as_csv(comparison).splitlines()) == 1 + len(comparison.runs)
    (refusal,) = [str(note) for note in comparison.notes if "no verdict" in str(note)]
    assert "\n" not in refusal
    return refusal


def test_the_same_measurement_gets_a_verdict(tmp_path: Path) -> None:
    write_setting(tmp_path, "a", 3.0, evaluation(), {"optimizer.lr": 1e-3})
    write_setting(tmp_path, "b", 3.5, evaluation(), {"optimizer.lr": 2e-3})
    comparison = compared(tmp_path)
    assert "lr=0.001 is better than lr=0.002" in verdicts(comparison)
    assert not any("verdict" in str(note) for note in comparison.notes)


@pytest.mark.parametrize("recorded", [True, False])
def test_another_validation_set_gets_no_verdict(tmp_path: Path, recorded: bool) -> None:
    for name, loss in (("a", 3.0), ("b", 3.4)):
        data = {"environment": {"data": {"train": name * 64, "val": name * 64}}}
        record = evaluation(name, text=name * 64) if recorded else None
        write_setting(tmp_path, name, loss, record, {"data.path": f"data/{name}"}, **data)
    refusal = refused(compared(tmp_path))
    assert "data.path=data/a (tokens aaaaaaaa)" in refusal
    assert "data.path=data/b (tokens bbbbbbbb)" in refusal
    assert "evaluate RUN --data FOLDER" in refusal


def test_data_that_changed_under_one_path_gets_no_verdict(tmp_path: Path) -> None:
    write_setting(tmp_path, "a", 3.0, evaluation("a", text="d" * 64), {"optimizer.lr": 1e-3})
    write_setting(tmp_path, "b", 3.4, evaluation("b", text="e" * 64), {"optimizer.lr": 2e-3})
    assert "tokens aaaaaaaa" in refused(compared(tmp_path))


def test_another_tokenizer_of_the_same_text_is_compared_in_bits_per_byte(tmp_path: Path) -> None:
    """The losses per token say that a is better, but b has fewer bits per byte of the text."""
    other = evaluation("b", tokenizer={"kind": "bpe", "sha256": "d" * 64}, tokens=6_000, vocab_size=4_096)
    write_setting(tmp_path, "a", 3.0, evaluation(), {"data.path": "data/a"}, bytes_per_token=4)
    write_setting(tmp_path, "b", 4.0, other, {"data.path": "data/b"}, bytes_per_token=6)
    comparison = compared(tmp_path)
    assert comparison.metric == "val/bits_per_byte"
    assert "path=data/b is better than path=data/a" in verdicts(comparison)
    assert any("compared in bits per byte of the same text" in str(note) for note in comparison.notes)
    assert compared(tmp_path, metric="val/bits_per_byte").conclusions == comparison.conclusions


@pytest.mark.parametrize(
    "changes",
    [
        {"text": None},  # prepared by an older version
        {"text": "e" * 64},
        {"selection": "evenly spaced", "tokens": 6_016},
    ],
)
def test_another_tokenizer_of_text_that_may_differ_gets_no_verdict(tmp_path: Path, changes: dict[str, Any]) -> None:
    other = {"tokenizer": {"kind": "bpe", "sha256": "d" * 64}, **changes}
    first = {key: value for key, value in changes.items() if key == "selection"} and {**changes, "tokens": 8_000}
    write_setting(tmp_path, "a", 3.0, evaluation(**first), {"data.path": "data/a"})
    write_setting(tmp_path, "b", 4.0, evaluation("b", **other), {"data.path": "data/b"})
    for metric in ("val/loss", "val/bits_per_byte"):
        refusal = refused(compare(load_runs([tmp_path]), metric=metric))
        assert "prepare the same text with each tokenizer" in refusal
        assert metric in refusal


@pytest.mark.parametrize("recorded", [True, False])
def test_another_block_size_gets_no_verdict(tmp_path: Path, recorded: bool) -> None:
    for size, loss in ((64, 3.1), (128, 3.0)):
        record = evaluation(block_size=size) if recorded else None
        write_setting(tmp_path, str(size), loss, record, {"data.block_size": size, "trainer.eval_tokens": None})
    refusal = refused(compared(tmp_path))
    assert "data.block_size=64" in refusal
    assert "data.block_size=128" in refusal


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    "changes",
    [({"trainer.eval_batches": 10}, {"trainer.eval_batches": 20}), ({"data.batch_size": 8}, {"data.batch_size": 16})],
)
def test_another_part_of_the_split_gets_no_verdict(
    tmp_path: Path, recorded: bool, changes: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    for number, change in enumerate(changes):
        settings = {"data.batch_size": 8, "trainer.eval_batches": 10, "trainer.eval_tokens": None, **change}
        tokens = settings["data.batch_size"] * settings["trainer.eval_batches"] * 128
        record = evaluation(selection="evenly spaced", tokens=tokens) if recorded else None
        write_setting(tmp_path, str(number), 3 + number / 10, record, settings)
    refusal = refused(compared(tmp_path))
    assert "an evaluation of 10,240 tokens" in refusal
    assert "an evaluation of 20,480 tokens" in refusal
    assert "trainer.eval_tokens" in refusal


def test_the_same_tokens_with_another_batch_size_get_a_verdict(tmp_path: Path) -> None:
    for size, loss in ((8, 3.0), (16, 3.5)):
        record = evaluation(selection="evenly spaced", tokens=5_120)
        write_setting(tmp_path, str(size), loss, record, {"data.batch_size": size, "trainer.eval_tokens": 5_120})
    assert "batch_size=8 is better than batch_size=16" in verdicts(compared(tmp_path))


def test_another_mask_is_a_remark(tmp_path: Path) -> None:
    write_setting(tmp_path, "a", 3.0, evaluation())
    write_setting(tmp_path, "b", 3.5, evaluation() | {"mask_documents": True}, {"model.mask_documents": True})
    comparison = compared(tmp_path)
    assert "is better than" in verdicts(comparison)
    assert any("from its own document only" in str(note) for note in comparison.notes)


def test_classes_of_runs_get_their_own_verdicts(tmp_path: Path) -> None:
    for name in "ab":
        for lr, loss in ((1e-3, 3.0), (2e-3, 3.5)):
            record = evaluation(name, text=name * 64)
            changes = {"data.path": f"data/{name}", "optimizer.lr": lr}
            write_setting(tmp_path, f"{name}-{lr}", loss, record, changes)
    comparison = compared(tmp_path)
    sentences = [text for text in comparison.conclusions.sentences if "better than" in text]
    assert len(sentences) == 2
    for name, sentence in zip("ab", sentences, strict=True):
        assert sentence.startswith(f"data.path=data/{name} (tokens {name * 8}): ")
        assert "lr=0.001 is better than lr=0.002" in sentence
    content = json.loads(as_json(comparison))
    assert content["sentences"] == list(comparison.conclusions.sentences)
    assert content["sentences"][0].startswith("no verdict between data.path=data/a")
    (other,) = content["other_classes"]
    assert [content["class"], other["class"]] == [title for title, _ in comparison.classes]
    for statistics in (content, other):
        assert [group["label"] for group in statistics["groups"]] == ["lr=0.001", "lr=0.002"]
        assert statistics["comparisons_with_the_best"][0]["verdict"] == "better"
        assert statistics["savings"]
    assert as_markdown(comparison).count("| setting | seeds |") == 2
    assert len(page_data(comparison)["groups"]) == 5


def test_classes_that_differ_in_the_same_way_share_one_refusal(tmp_path: Path) -> None:
    for size in (32, 64, 128):
        write_setting(tmp_path, str(size), 3.0, evaluation(block_size=size), {"data.block_size": size})
    refusal = refused(compared(tmp_path))
    assert all(f"data.block_size={size} (3 runs)" in refusal for size in (32, 64, 128))


def test_runs_without_a_record_get_a_note_and_a_verdict(tmp_path: Path) -> None:
    write_setting(tmp_path, "a", 3.0, evaluation(), {"optimizer.lr": 1e-3, "trainer.eval_tokens": None})
    unknown = {"environment": {"data": None}}
    write_setting(tmp_path, "b", 3.5, None, {"optimizer.lr": 2e-3, "trainer.eval_tokens": None}, **unknown)
    comparison = compared(tmp_path)
    assert "is better than" in verdicts(comparison)
    assert any("is recorded" in str(note) for note in comparison.notes)


def test_a_run_without_a_record_and_without_limits_measured_the_whole_split(tmp_path: Path) -> None:
    old = {"trainer.eval_tokens": None, "trainer.eval_batches": None, "optimizer.lr": 1e-3}
    write_setting(tmp_path, "old", 3.0, None, old, environment={"data": {"val": "a" * 64}})
    for config in tmp_path.glob("old-*/config.yaml"):  # of a version without this key
        config.write_text(config.read_text().replace("  eval_tokens: null\n", ""))
    part = evaluation(selection="evenly spaced", tokens=5_120)
    write_setting(tmp_path, "new", 3.5, part, {"optimizer.lr": 2e-3})
    refusal = refused(compared(tmp_path))
    assert "an evaluation of the whole split" in refusal
    assert "an evaluation of 5,120 tokens" in refusal


def test_a_resume_that_changed_the_evaluation_counts_from_its_step_on(tmp_path: Path) -> None:
    part = evaluation(selection="evenly spaced", tokens=5_120)
    resumes = {"environment": {"resumes": [{"evaluation": part | {"after_step": 10}}]}}
    write_setting(tmp_path, "a", 3.0, evaluation(), {"optimizer.lr": 1e-3}, **resumes)
    write_setting(tmp_path, "b", 3.5, part, {"optimizer.lr": 2e-3})
    runs = load_runs([tmp_path])
    assert len(measured_alike(runs, "val/loss", [20.0]).alike) == 1
    assert len(measured_alike(runs, "val/loss", [10.0]).alike) == 2
    assert len(measured_alike(runs, "val/loss").alike) == 4  # each of the three has two measurements
    refusal = refused(compare(runs, value="best"))
    assert "lr=0.001 seed=1, of which a resume changed what it measures (1 run)" in refusal


def test_training_losses_of_other_data_get_no_verdict_but_speeds_do(tmp_path: Path) -> None:
    for name, loss in (("a", 3.0), ("b", 3.4)):
        data = {"environment": {"data": {"train": name * 64, "val": "c" * 64}}}
        write_setting(tmp_path, name, loss, evaluation("c"), {"data.path": f"data/{name}"}, **data, speed=loss)
    assert "train/loss does not measure the same" in refused(compared(tmp_path, metric="train/loss"))
    assert "is better than" in verdicts(compared(tmp_path, metric="tokens_per_second"))
    assert "is better than" in verdicts(compared(tmp_path))


def test_the_table_is_sorted_by_what_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = evaluation("b", tokenizer={"kind": "bpe", "sha256": "d" * 64})
    write_setting(tmp_path, "a", 3.0, evaluation(), {"data.path": "data/a"}, bytes_per_token=4)
    write_setting(tmp_path, "b", 4.0, other, {"data.path": "data/b"}, bytes_per_token=6)
    assert main([str(tmp_path), "--columns", "data.path,at_step"]) == 0
    printed = capsys.readouterr().out
    assert "6 runs, val/bits_per_byte" in printed
    assert re.findall(r"^ *(data/.) +\d", printed, re.MULTILINE) == ["data/b"] * 3 + ["data/a"] * 3
