"""Tasks at each evaluation of a run: their metrics, and that training is the same with them."""

import json
from pathlib import Path

import pytest
from support.command_line import Cli
from support.ranks import train_ranks
from support.tiny_trainer import timeless_metrics
from support.tokens import TINY, write_tokens

from lmtrain.data.tokenizer import tokenizer_of_characters
from lmtrain.files.metrics import read_metrics

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

CHARACTERS = {character: number for number, character in enumerate("\n abcdefghijklmnopqrstuvwxyz")}
RUN = [*TINY, "data.path=data", "trainer.max_steps=4", "trainer.eval_interval=2", "model.dropout=0.1"]
TASKS = ["trainer.eval_tasks=[words]", "trainer.eval_tasks_folder=tasks"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokens(tmp_path / "data")
    tokenizer_of_characters(CHARACTERS).tokenizer.save(str(tmp_path / "data" / "tokenizer.json"))
    (tmp_path / "tasks").mkdir()
    rows = [{"q": "one", "options": [" a", " b"], "answer": number % 2} for number in range(4)]
    (tmp_path / "tasks" / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {"task": "words", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "q.jsonl"}},
            "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{q}}",
            "doc_to_choice": "{{options}}", "doc_to_target": "{{answer}}", "target_delimiter": "",
            "metric_list": [{"metric": "acc"}]}  # fmt: skip
    (tmp_path / "tasks" / "words.yaml").write_text(json.dumps(task), encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_training_is_the_same_to_the_bit_and_a_resume_needs_trust(cli: Cli, folder: Path) -> None:
    for name, more in (("with", TASKS), ("without", [])):
        done = cli(*RUN, *more, f"hydra.run.dir={name}", timeout=180)
        assert done.returncode == 0, done.stderr
    found, without = (timeless_metrics(folder / name) for name in ("with", "without"))
    scores = [line.pop("tasks/words/acc", None) for line in found]
    assert [line["step"] for line, score in zip(found, scores, strict=True) if score is not None] == [2, 4]
    assert set(scores) <= {None, 0.5}
    assert found == without
    weights = [folder / name / "checkpoints" / "step-00000004" / "model.safetensors" for name in ("with", "without")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    refused = cli("resume=with", "trainer.max_steps=5")
    assert refused.returncode == 2
    assert "the tasks in the run's config are code; if you trust their files, add trust=lm_eval" in refused.stderr
    assert cli("resume=with", "trainer.max_steps=5", "trust=lm_eval", timeout=180).returncode == 0
    refused = cli("fork=with", "hydra.run.dir=fork")
    assert "set trainer.eval_tasks=null or your own trainer.eval_tasks_folder in a fork" in refused.stderr
    refused = cli("fork=with", "trainer.eval_tasks=[words]", "hydra.run.dir=fork")
    assert "trust=lm_eval" in refused.stderr, "the folder, which has the code, is still that of the run"
    own = ["trainer.eval_tasks_folder=tasks", "trainer.max_steps=6", "hydra.run.dir=own"]
    assert cli("fork=with", *own, timeout=180).returncode == 0
    assert cli("fork=with", "trainer.eval_tasks=null", "trainer.max_steps=6", "hydra.run.dir=fork").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_several_processes_find_the_same(cli: Cli, folder: Path, way: str) -> None:
    more = ["model.dropout=0.0", "trainer.eval_tasks_limit=3"]
    assert cli(*RUN, *TASKS, *more, "hydra.run.dir=one", timeout=180).returncode == 0
    train_ranks(cli, 2, *RUN, *TASKS, *more, f"parallel={way}", "hydra.run.dir=two")
    one, two = (
        [line["tasks/words/acc"] for line in read_metrics(folder / name / "metrics.jsonl") if "tasks/words/acc" in line]
        for name in ("one", "two")
    )
    assert one == two
    assert len(one) == 2


@pytest.mark.slow
def test_mistakes_are_found_before_the_start(cli: Cli, folder: Path) -> None:
    for options, message in (
        (["trainer.eval_tasks=[words]"], "trainer.eval_tasks_folder=null: no such folder"),
        (["trainer.eval_tasks=[words]", "trainer.eval_tasks_folder=none"], "trainer.eval_tasks_folder="),
        (["trainer.eval_tasks=[other]", "trainer.eval_tasks_folder=tasks"], "other: no such task in"),
    ):
        done = cli(*RUN, *options, "hydra.run.dir=out", timeout=180)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
