"""Writes `samples.jsonl`: the texts that a model wrote while it was trained."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmtrain.files.durable import append_line, write_atomically

SAMPLES_FILE = "samples.jsonl"


class SamplesLogger:
    """Appends a line for each text: the step, the prompt and its continuation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing: metrics have a file of their own."""

    def log_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        for prompt, text in samples:
            append_line(self.path, json.dumps({"step": step, "prompt": prompt, "text": text}, ensure_ascii=False))

    def rewind(self, step: int) -> None:
        """Remove the texts of steps that are about to be run again, and lines that are no texts."""
        if not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        if kept != lines:
            write_atomically(self.path, "".join(f"{line}\n" for line in kept))

    def close(self, status: str) -> None:
        """Do nothing: each line is on the disk when it was logged."""


def _step_of(line: str) -> float:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return float(json.loads(line)["step"])
    return float("inf")
