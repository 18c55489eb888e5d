"""The harness gets what a direct computation gives; tasks from local files give the scores of a hand computation."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from support.exported import loaded

from lmtrain.errors import DataError

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval.api.instance import Instance

from lmtrain.evaluate.harness import HarnessModel
from lmtrain.evaluate.tasks import load_tasks


def model_of(kind: str, model: str = "llama", batch_size: int = 3) -> HarnessModel:
    run = loaded(model, kind)
    assert run.tokenizer is not None
    return HarnessModel(run.model.double(), run.tokenizer, run.system, 24, batch_size)


def requests(*arguments: tuple[object, ...]) -> list[Instance]:
    return [Instance("loglikelihood", {}, each, 0) for each in arguments]


def direct(model: HarnessModel, before: list[int], after: list[int]) -> tuple[float, bool]:
    """Return the log-likelihood, one token at a time, in float64."""
    total, greedy = 0.0, True
    for number, token in enumerate(after):
        ids = [*before, *after[:number]][-model.block_size :]
        with torch.no_grad():
            logits = model.model(torch.tensor([ids]))[0][0, -1].double()
        total += float(F.log_softmax(logits, -1)[token])
        greedy &= int(logits.argmax()) == token
    return total, greedy


@pytest.mark.parametrize(("kind", "model"), [("bpe", "llama"), ("bytes", "gpt2"), ("characters", "llama")])
def test_loglikelihoods_are_those_of_a_direct_computation(kind: str, model: str) -> None:
    asked = model_of(kind, model)
    pairs = [("def f", "(x):"), ("def f ", "(x)"), ("import", " os"), ("import", " re"), ("a = ", "1"), ("x", "y = 1")]
    answers = asked.loglikelihood(requests(*pairs))
    for (context, continuation), (found, greedy) in zip(pairs, answers, strict=True):
        encode = asked.tokenizer.encode
        before = encode(context.rstrip())
        expected, likeliest = direct(asked, before, encode(context + continuation)[len(before) :])
        assert found == pytest.approx(expected, rel=1e-12)
        assert greedy == likeliest
    together = asked.loglikelihood(requests(*pairs * 2))
    assert [each for each, _ in together] == pytest.approx([each for each, _ in answers] * 2, rel=1e-12)


def test_a_token_over_the_end_of_the_context_scores_nothing_for_free() -> None:
    asked = model_of("bpe")
    (found, _), (other, _) = asked.loglikelihood(requests(("impo", "rt"), ("impo", " x")))
    before = asked.tokenizer.encode("impo")
    assert len(asked.tokenizer.encode("import")) <= len(before)
    assert found == pytest.approx(direct(asked, before, asked.tokenizer.encode("rt"))[0], rel=1e-12)
    assert other == pytest.approx(direct(asked, before, asked.tokenizer.encode(" x"))[0], rel=1e-12)


def test_every_token_of_a_long_continuation_counts() -> None:
    asked = model_of("bytes")
    ((found, _),) = asked.loglikelihood(requests(("de", "f " * 32)))
    ids, total = [*b"de", *b"f " * 32], 0.0
    for first in (2, 26, 50):
        last = min(first + 24, len(ids))
        with torch.no_grad():
            seen = ids[max(0, last - 25) : last - 1]
            logprobs = asked.model(torch.tensor([seen]))[0][0].double().log_softmax(-1)
        total += sum(float(logprobs[number - last, ids[number]]) for number in range(first, last))
    assert found == pytest.approx(total, rel=1e-10)


def test_an_empty_context_is_the_begin_of_a_document() -> None:
    asked = model_of("bytes")
    ((found, _),) = asked.loglikelihood(requests(("", "ab")))
    assert found == pytest.approx(direct(asked, [256], [97, 98])[0], rel=1e-12)
    without = model_of("characters")
    with pytest.raises(DataError, match="has no end of text to begin with"):
        without.loglikelihood(requests(("", "ab")))
    with pytest.raises(DataError, match="has no end of text to begin with"):
        without.generate_until(requests(("", {"until": []})))


def test_a_long_context_loses_its_beginning() -> None:
    asked = model_of("bytes")
    ((found, _),) = asked.loglikelihood(requests(("x" * 50, "yz")))
    ids = [120] * 50 + [121, 122]
    with torch.no_grad():
        logits = asked.model(torch.tensor([ids[-25:-1]]))[0][0].double().log_softmax(-1)
    assert found == pytest.approx(float(logits[-2, 121] + logits[-1, 122]), rel=1e-12)


def test_a_greedy_continuation_is_greedy() -> None:
    asked = model_of("bytes")
    ids = asked.tokenizer.encode("def ")
    with torch.no_grad():
        likeliest = int(asked.model(torch.tensor([ids[:-1]]))[0][0, -1].argmax())
    if likeliest < 128:
        ((_, greedy),) = asked.loglikelihood(requests(("def", chr(likeliest))))
        assert greedy


def test_a_long_answer_leaves_half_of_the_block_to_the_question() -> None:
    asked = model_of("bytes")
    question = "abcdefghijklmnopqrstuvwxyz"
    (given,) = asked.generate_until(requests((question, {"until": []})))
    (same,) = asked.generate_until(requests((question[-12:], {"until": [], "max_gen_toks": 12})))
    assert given == same


def test_a_whole_text_is_the_sum_of_its_tokens() -> None:
    asked = model_of("bytes")
    text = "def main():\n    return 1\n" * 2
    found, nothing = asked.loglikelihood_rolling(requests((text,), ("",)))
    assert nothing == 0
    ids = [256, *text.encode()]
    total = 0.0  # windows of 24 tokens that do not overlap; the last one begins earlier, to have a whole context
    for start in (0, 24):
        total += direct(asked, ids[start : start + 1], ids[start + 1 : start + 25])[0]
    total += direct(asked, ids[len(ids) - 25 : 49], ids[49:])[0]
    assert found == pytest.approx(total, rel=1e-10)


def test_text_is_written_until_a_stop_text() -> None:
    asked = model_of("bytes")
    (whole,) = asked.generate_until(requests(("def", {"until": [], "max_gen_toks": 12})))
    (cut,) = asked.generate_until(requests(("def", {"until": [whole[3]], "max_gen_toks": 12, "do_sample": False})))
    assert cut == whole[: whole.index(whole[3])]


def test_samples_follow_the_options_of_the_task_and_each_request_has_its_own() -> None:
    asked = model_of("bytes")
    sampled = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 5.0}
    first, second = asked.generate_until(requests(("def", sampled), ("def", sampled)))
    assert first != second
    (greedy,) = asked.generate_until(requests(("def", {"until": [], "max_gen_toks": 12})))
    for limit in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"do_sample": False}):
        assert asked.generate_until(requests(("def", sampled | limit))) == [greedy], limit
    assert first != greedy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two tasks: one of choices, one of continuations."""
    choices = [{"q": "def", "options": [" f", " g", "="], "answer": number % 3} for number in range(7)]
    (tmp_path / "choices.jsonl").write_text("".join(json.dumps(each) + "\n" for each in choices), encoding="utf-8")
    ends = [{"text": text, "end": end} for text, end in (("import", " os"), ("return", " x"), ("class", " A"))]
    (tmp_path / "ends.jsonl").write_text("".join(json.dumps(each) + "\n" for each in ends), encoding="utf-8")
    common = {"dataset_path": "json", "test_split": "test", "metadata": {"version": 1}}
    tasks = [
        {
            "task": "choices",
            "dataset_kwargs": {"data_files": {"test": "choices.jsonl"}},
            "output_type": "multiple_choice",
            "doc_to_text": "{{q}}",
            "doc_to_choice": "{{options}}",
            "doc_to_target": "{{answer}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        },
        {
            "task": "ends",
            "dataset_kwargs": {"data_files": {"test": "ends.jsonl"}},
            "output_type": "loglikelihood",
            "doc_to_text": "{{text}}",
            "doc_to_target": "{{end}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
        },
    ]
    for task in tasks:
        (tmp_path / f"{task['task']}.yaml").write_text(yaml.safe_dump(common | task), encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_tasks_give_the_scores_of_a_hand_computation(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = model_of("bytes")
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    found = {(each.task, each.metric): each for each in load_tasks(["choices", "ends"], folder).run(asked)}
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    ids = list(b"def")
    best = int(np.argmax([direct(asked, ids, list(option))[0] for option in (b" f", b" g", b"=")]))
    accuracy = found["choices", "acc"]
    assert accuracy.value == pytest.approx(np.mean([number % 3 == best for number in range(7)]))
    assert accuracy.samples == 7
    assert accuracy.standard_error == pytest.approx(
        np.std([number % 3 == best for number in range(7)], ddof=1) / 7**0.5
    )
    sums = [
        direct(asked, list(text), list(end))[0]
        for text, end in ((b"import", b" os"), (b"return", b" x"), (b"class", b" A"))
    ]
    assert found["ends", "perplexity"].value == pytest.approx(np.exp(-np.mean(sums)), rel=1e-6)
    monkeypatch.chdir(folder.parent)
    loaded = load_tasks(["choices"], Path(folder.name))  # a folder that is given as a relative path
    limited = loaded.run(asked, limit=3)
    assert limited[0].samples == 3
    assert loaded.run(asked, limit=3) == limited
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_group_has_the_questions_of_its_tasks(folder: Path) -> None:
    group = {"group": "both", "task": ["choices", "ends"], "aggregate_metric_list": [{"metric": "acc"}]}
    (folder / "both.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    found = {each.task: each for each in load_tasks(["both"], folder).run(model_of("bytes")) if each.metric == "acc"}
    assert {task: each.samples for task, each in found.items()} == {"both": 10, "choices": 7, "ends": 3}
    mean = (7 * found["choices"].value + 3 * found["ends"].value) / 10
    assert found["both"].value == pytest.approx(mean)


@pytest.mark.slow
def test_mistakes_are_one_line(folder: Path) -> None:
    asked = model_of("bytes")
    with pytest.raises(DataError, match=r"nothing: no such task in .*; it has choices, ends$"):
        load_tasks(["choices", "nothing"], folder)
    (folder / "choices.jsonl").unlink()
    with pytest.raises(DataError, match=r"choices: the harness can't run this") as caught:
        load_tasks(["choices"], folder)
    assert "\n" not in str(caught.value)
    task = (folder / "ends.yaml").read_text(encoding="utf-8")
    (folder / "ends.yaml").write_text(task.replace("{{end}}", "{{1 / 0}}"), encoding="utf-8")
    with pytest.raises(DataError, match=r"ends: the harness can't run this"):
        load_tasks(["ends"], folder).run(asked)
    (folder / "ends.yaml").write_text(task.replace("{{end}}", "鯨"), encoding="utf-8")
    with pytest.raises(DataError, match=r"ends: the harness can't run this \(the tokenizer does not know '鯨'\)"):
        load_tasks(["ends"], folder).run(model_of("characters"))
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="it has no task files"):
        load_tasks(["choices"], folder / "empty")


@pytest.mark.slow
def test_an_error_of_the_model_is_not_one_of_the_tasks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, loaded = model_of("bytes"), load_tasks(["choices"], folder)

    def fails(*arguments: object) -> None:
        raise RuntimeError("the model fails")

    monkeypatch.setattr(asked.model, "forward", fails)
    with pytest.raises(RuntimeError, match="the model fails"):
        loaded.run(asked)
