"""Compares a run that was killed and resumed with an undisturbed run: checkpoints bit for bit, metrics line by line."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmtrain.checkpoint.files import Checkpoint, load_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.errors import BrokenCheckpointError
from lmtrain.files.limited import read_json
from lmtrain.files.metrics import MEASURED, read_metrics
from lmtrain.terminal.as_text import differences

# The parts of a checkpoint's state.json on which training depends, and the keys in them that differ between any two
# runs, because they record a time or the identity of a run or file.
COMPARED_STATE = ("train", "optimizer", "optimizer_groups", "scaler", "data")
TIME_OR_IDENTITY = frozenset({"seconds", "run_id", "stamps"})
COMPARED_RESULT = (
    "status", "objective", "best_val_loss", "best_step", "final_train_loss", "final_val_loss", "steps", "tokens",
)  # fmt: skip


@dataclass(frozen=True)
class BitDifference:
    """The first difference in one file, in words: the value of the undisturbed run, then that of the other run."""

    step: int
    where: str
    what: str

    def __str__(self) -> str:
        return f"step {self.step}, {self.where}: {self.what}"


class UndisturbedRun:
    """A completed run that kept every checkpoint; `steps` are the steps of the checkpoints.

    `compared_checkpoints` and `compared_lines` count the checkpoints and lines of other runs that were equal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.compared_checkpoints = self.compared_lines = 0
        self._folder = CheckpointFolder.of_run(path)
        self.steps = frozenset(self._folder.steps())
        self._metrics = [_without_measured(line) for line in read_metrics(path / "metrics.jsonl")]
        # While a killed run has met fewer bad steps than this one had at the same step, a rewind will still repeat the
        # step.
        self._bad_steps = {line["step"]: line.get("bad_steps", 0) for line in self._metrics}
        self._seen: set[Any] = set()

    def differences(self, run: Path, *, completed: bool) -> list[BitDifference]:
        """Return all differences between a run and this one at the same step, the earliest first.

        A line or checkpoint that was equal before and has not changed is not compared again. With `completed`, the run
        must also have all lines and the same result. Without it, steps that a rewind will repeat are not compared.
        """
        found = [*self._metric_differences(run, completed), *self._checkpoint_differences(run, completed)]
        if completed:
            found += self._result_differences(run)
        return sorted(found, key=lambda difference: difference.step)

    def _metric_differences(self, run: Path, completed: bool) -> Iterator[BitDifference]:
        path = run / "metrics.jsonl"
        lines = read_metrics(path) if path.exists() else []
        steps: set[float] = set()
        for number, line in enumerate(lines):
            step = int(line["step"])
            if step in steps:
                yield BitDifference(step, "metrics.jsonl", "the step is logged twice")
                return
            steps.add(step)
            if number >= len(self._metrics):
                yield BitDifference(step, "metrics.jsonl", "a line that the undisturbed run does not have")
                return
            expected = self._metrics[number]
            if step != expected["step"]:
                yield BitDifference(int(expected["step"]), "metrics.jsonl", f"the line is missing; step {step} follows")
                return
            if not completed and line.get("bad_steps", 0) < self._bad_steps[step]:
                return
            if changed := differences(_as_in_the_file(expected), _as_in_the_file(_without_measured(line))):
                yield BitDifference(step, "metrics.jsonl", "; ".join(changed))
                return
            self.compared_lines += self._is_new((run, tuple(line.items())))
        if completed and len(lines) < len(self._metrics):
            yield BitDifference(
                int(self._metrics[len(lines)]["step"]), "metrics.jsonl", "the line is missing at the end"
            )

    def _checkpoint_differences(self, run: Path, completed: bool) -> Iterator[BitDifference]:
        folder = CheckpointFolder.of_run(run)
        for name in folder.broken():
            step = int(re.sub(r"\D*(\d+).*", r"\1", name))
            yield BitDifference(step, f"checkpoints/{name}", "a kill broke a complete checkpoint")
        for step in folder.steps():
            path = folder.at(step)
            if (key := _file_versions(path)) in self._seen:
                continue
            where = f"checkpoints/{path.name}"
            try:
                found = load_checkpoint(path)
                if not completed and found.state["train"].get("bad_steps", 0) < self._bad_steps.get(step, 0):
                    continue
                if step not in self.steps:
                    yield BitDifference(step, where, "the undisturbed run has no checkpoint of this step")
                    continue
                if what := _checkpoint_difference(load_checkpoint(self._folder.at(step)), found):
                    yield BitDifference(step, where, what)
                    continue
            except BrokenCheckpointError as error:
                yield BitDifference(step, where, f"a kill broke it: {error}")
                continue
            self.compared_checkpoints += self._is_new(key)

    def _result_differences(self, run: Path) -> Iterator[BitDifference]:
        expected, found = read_json(self.path / "result.json"), read_json(run / "result.json")
        for name in COMPARED_RESULT:
            for line in differences(expected.get(name), found.get(name), name):
                yield BitDifference(int(expected["steps"]), "result.json", line)

    def _is_new(self, key: Any) -> bool:
        new = key not in self._seen
        self._seen.add(key)
        return new


def _checkpoint_difference(expected: Checkpoint, found: Checkpoint) -> str | None:
    parts = [
        line
        for part in COMPARED_STATE
        for line in differences(
            _without_time_and_identity(expected.state.get(part)),
            _without_time_and_identity(found.state.get(part)),
            part,
        )
    ]
    for group in dict.fromkeys([*expected.tensors, *found.tensors]):
        if group not in expected.tensors or group not in found.tensors:
            parts.append(f"{group}.safetensors is in only one of them")
        elif what := tensor_differences(expected.tensors[group], found.tensors[group]):
            parts.append(f"{group}.safetensors: {what}")
    return "; ".join(parts) or None


def first_metric_difference(old: Path, new: Path) -> tuple[int, BitDifference | None]:
    """Return the number of steps that both runs logged, and the first difference in their metrics."""
    before, after = (
        {int(line["step"]): _as_in_the_file(_without_measured(line)) for line in read_metrics(run / "metrics.jsonl")}
        for run in (old, new)
    )
    steps = sorted(before.keys() & after.keys())
    for step in steps:
        if changed := differences(before[step], after[step]):
            return len(steps), BitDifference(step, "metrics.jsonl", changed[0])
    return len(steps), None


def tensor_differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Return, in words, the first tensor whose bytes differ and the number of such tensors; None if all are equal."""
    names = dict.fromkeys([*expected, *found])
    described = [(name, _tensor_difference(expected.get(name), found.get(name))) for name in names]
    differing = [(name, what) for name, what in described if what]
    if not differing:
        return None
    name, what = differing[0]
    return f"{name}{what} ({len(differing)} of {len(names)} tensors differ)"


def _tensor_difference(expected: Tensor | None, found: Tensor | None) -> str | None:
    if expected is None or found is None:
        return " is in only one of them"
    if (expected.dtype, expected.shape) != (found.dtype, found.shape):
        return f" is {expected.dtype} of shape {list(expected.shape)} → {found.dtype} of shape {list(found.shape)}"
    # Bytes are compared, because 0.0 == -0.0 although their bits differ, and NaN != NaN although their bits are equal.
    wrong = (_element_bytes(expected) != _element_bytes(found)).any(dim=1).nonzero().flatten()
    if not len(wrong):
        return None
    index = torch.unravel_index(wrong[0], expected.shape)
    place = f"[{', '.join(str(int(i)) for i in index)}]" if expected.ndim else ""
    values = f"{expected[index].item()!r} → {found[index].item()!r}"
    return f"{place} {values}, {len(wrong):,} of {expected.numel():,} elements"


def _element_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8).reshape(tensor.numel(), tensor.element_size())


def _without_time_and_identity(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            name: _without_time_and_identity(inner) for name, inner in value.items() if name not in TIME_OR_IDENTITY
        }
    return value


def _without_measured(line: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name not in MEASURED}


def _as_in_the_file(line: Mapping[str, float]) -> dict[str, str]:
    """Return the values as JSON text, in which all NaNs are equal."""
    return {name: json.dumps(value) for name, value in line.items()}


def _file_versions(path: Path) -> tuple[object, ...]:
    """Return a key that changes if any file in the folder changes."""
    stats = ((file.name, file.stat()) for file in sorted(path.iterdir()))
    return (path, *((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats))
