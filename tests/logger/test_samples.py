"""Tests of `samples.jsonl`."""

import json
from pathlib import Path

from lmtrain.logger.samples import SamplesLogger, read_samples


def test_texts_of_later_steps_are_removed(tmp_path: Path) -> None:
    logger = SamplesLogger(tmp_path / "samples.jsonl")
    logger.rewind(0)
    for step in (1, 2, 3):
        logger.log_samples(step, [("a\n", "狐"), ("", f"{step}")])
    with (tmp_path / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "pro')  # of a killed process
    logger.rewind(2)
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": step, "prompt": prompt, "text": text}
        for step in (1, 2)
        for prompt, text in (("a\n", "狐"), ("", f"{step}"))
    ]


def test_a_text_with_unusual_line_ends_is_one_text(tmp_path: Path) -> None:
    logger, texts = SamplesLogger(tmp_path / "samples.jsonl"), ["a\u2028b", "a\u0085b", "a\rb\x0cc\n", "a"]
    logger.log_samples(1, [("", text) for text in texts])
    before = (tmp_path / "samples.jsonl").read_bytes()
    logger.rewind(1)
    assert (tmp_path / "samples.jsonl").read_bytes() == before
    assert [sample["text"] for sample in read_samples(tmp_path / "samples.jsonl")] == texts


def test_lines_without_a_text_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    lines = ['{"step": 1, "prompt": "", "text": "a"}', "[" * 100_000, "[]", '{"step": "1", "prompt": "", "text": ""}']
    path.write_text("\n".join([*lines, '{"step": 1, "prompt": ']), encoding="utf-8")
    assert read_samples(path) == [{"step": 1, "prompt": "", "text": "a"}]
