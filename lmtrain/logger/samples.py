"""Writes and reads `samples.jsonl`: the texts that a model wrote while it was trained."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmtrain.files.durable import append_line, write_atomically
from lmtrain.files.limited import read_limited
from lmtrain.files.numbers import is_number

SAMPLES_FILE = "samples.jsonl"
MAX_BYTES = 1 << 30


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
        content = self.path.read_bytes()
        kept = "".join(f"{line}\n" for line, sample in _lines(content) if sample["step"] <= step)
        if kept.encode() != content:
            write_atomically(self.path, kept)

    def close(self, status: str) -> None:
        """Do nothing: each line is on the disk when it was logged."""


def read_samples(path: Path, max_bytes: int = MAX_BYTES) -> list[dict[str, Any]]:
    """Return `step`, `prompt` and `text` of each text; lines that have none, such as half a last one, are left out.

    Raises:
        OSError: The file can't be read.
        ValueError: It has more bytes than `max_bytes`.
    """
    return [sample for _, sample in _lines(read_limited(path, max_bytes))]


def _lines(content: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line that has a text, and its content."""
    # Not splitlines(), which also cuts at characters that JSON may have inside a text, such as U+2028.
    for line in content.decode(errors="replace").split("\n"):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(found, dict) or not is_number(found.get("step")):
            continue
        if all(isinstance(found.get(key), str) for key in ("prompt", "text")):
            yield line, found
