"""The model card has the facts of the run, and neither secrets nor places of the machine."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from support.synthetic_runs import write_run

from lmtrain import load_run
from lmtrain.convert import model_card
from lmtrain.convert.model_card import write_model_card
from lmtrain.run.reading import notebook_view


def card_of(run: Path, folder: Path, step: int = 200) -> str:
    folder.mkdir()
    write_model_card(folder, load_run(run), load_run(run).config, step)
    return (folder / "README.md").read_text(encoding="utf-8")


def card_remarks(run: Path, folder: Path) -> list[str]:
    folder.mkdir()
    return write_model_card(folder, load_run(run), load_run(run).config, 0)


def test_the_card_has_the_facts_of_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"name": "bard", "optimizer.lr": 0.00123}, final_loss=2.75)
    text = card_of(run, tmp_path / "model")
    for fact in (
        "# bard",
        "1,000,000 parameters",
        "after step 200 of 200",
        "validation loss: 2.7500 nats per token",
        "lr `0.00123`",
        "config hash: `0000000000000000`",
        "tokens seen: 205k",
        "![loss by step](loss.png)",
        "d_model: `128`",
    ):
        assert fact in text
    assert str(tmp_path) not in text
    assert (tmp_path / "model" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_hub_reads_its_head(tmp_path: Path) -> None:
    card_of(write_run(tmp_path / "run"), tmp_path / "model")
    data = ModelCard.load(tmp_path / "model" / "README.md").data.to_dict()
    assert (data["library_name"], data["license"], data["tags"]) == ("transformers", "other", ["lmtrain"])


def test_losses_are_those_of_the_exported_checkpoint(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", final_loss=2.75)
    at_100 = next(line for line in load_run(run).metrics if line["step"] == 100)
    text = card_of(run, tmp_path / "model", step=120)
    assert f"validation loss: {at_100['val/loss']:.4f}" in text
    assert "after step 120 of 200" in text


def test_names_are_text_and_secrets_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret_value_123")
    strange = {
        "name": "<script>alert(1)</script>](x)",
        "data.path": "/home/me/data/`<b>x</b>`",
        "scheduler.token": "hf_very_secret_value_123",
    }
    text = card_of(write_run(tmp_path / "run", strange), tmp_path / "model")
    shown = MarkdownIt().render(text.partition("\n---\n\n")[2])
    assert "<script" not in shown
    assert "<b>" not in shown
    assert "/home/me" not in text
    assert "very_secret" not in text


def imported_run(path: Path, **record: object) -> Path:
    """Write a run that was imported and not trained."""
    run = write_run(path, {"data.path": "none"}, steps=0, status=None)
    (run / "imported.json").write_text(json.dumps(record), encoding="utf-8")
    (run / "environment.json").write_text(json.dumps({}), encoding="utf-8")
    return run


@pytest.mark.parametrize(
    ("record", "step"), [({"folder": "/home/me/SmolLM"}, 0), ({"checkpoint": "/home/me/SmolLM", "iter_num": 7}, 7)]
)
def test_the_card_of_an_imported_model_tells_only_where_it_comes_from(
    record: dict[str, object], step: int, tmp_path: Path
) -> None:
    text = card_of(imported_run(tmp_path / "run", **record), tmp_path / "model", step=step)
    assert "A language model, imported from `SmolLM`, not trained with lmtrain." in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Model", "## Origin", "## Licence"]
    assert "none" not in text.lower()
    assert "/home" not in text


def test_an_imported_model_that_was_trained_has_both(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"trainer.grad_clip": None})
    (run / "imported.json").write_text(json.dumps({"file": "/home/me/gpt2.bin"}), encoding="utf-8")
    text = card_of(run, tmp_path / "model")
    assert ", imported from `gpt2.bin`, trained with lmtrain: its state after step 200 of 200." in text
    assert "## Training" in text
    assert "gradient clipping" not in text


def test_the_example_uses_a_tokenizer_only_if_there_is_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert "AutoTokenizer" not in card_of(run, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").touch()
    write_model_card(tmp_path / "model", load_run(run), load_run(run).config, 200)
    assert "AutoTokenizer" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def test_paths_inside_lists_and_mappings_are_shortened(tmp_path: Path) -> None:
    source = {"files": ["/home/me/secret/*.txt"], "parts": {"/home/me/other": {"more": ["/home/me/deep/a.txt"]}}}
    text = card_of(write_run(tmp_path / "run", {"prepare": {"source": source}}), tmp_path / "model")
    assert "source, files: `['*.txt']`" in text
    assert "a.txt" in text
    assert "/home/me" not in text


def test_a_run_without_metrics_and_matplotlib_has_a_card_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook_view, "is_installed", lambda name: False)
    run = write_run(tmp_path / "run", steps=0, status=None)
    assert not any("matplotlib" in line for line in card_remarks(run, tmp_path / "without losses"))
    run = write_run(tmp_path / "trained", steps=50, status=None)
    (run / "environment.json").write_text(json.dumps({}), encoding="utf-8")
    (tmp_path / "model").mkdir()
    remarks = write_model_card(tmp_path / "model", load_run(run), load_run(run).config, 50)
    assert any("matplotlib is missing" in remark for remark in remarks)
    assert not (tmp_path / "model" / "loss.png").exists()
    assert model_card.LICENCE in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
