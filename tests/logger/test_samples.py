"""Tests of `samples.jsonl`."""

import json
from pathlib import Path

from lmtrain.logger.samples import SamplesLogger


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
