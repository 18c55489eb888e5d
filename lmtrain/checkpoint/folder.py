"""Checkpoints as folders of safetensors and JSON files. A checkpoint is complete and verified, or does not exist.

A checkpoint is written into a hidden folder, flushed to disk, hashed into `MANIFEST.json` and then renamed. A kill at
any moment leaves the earlier checkpoints untouched. Nothing is ever overwritten, and no pickle is read.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lmtrain.checkpoint.steps import CHECKPOINTS, DELETED, PARTIAL, is_leftover, step_folder, steps_in
from lmtrain.errors import BrokenCheckpointError, NonFiniteStateError
from lmtrain.files.durable import make_folder, sha256_of, sync
from lmtrain.files.limited import read_limited
from lmtrain.files.unsupported import copy_mode, free_bytes, link_for_people

log = logging.getLogger(__name__)

MANIFEST, STATE = "MANIFEST.json", "state.json"
MANIFEST_BYTES, STATE_BYTES = 1 << 20, 64 << 20  # size limits for reading, far above the real sizes
BROKEN, OTHER = "broken-", "other-"
FILE_NAME = re.compile(r"\w[\w.-]{0,254}", re.ASCII)
FREE_SPACE_FACTOR = 1.1  # free space that a save needs, relative to the bytes of the tensors


@dataclass(frozen=True)
class Checkpoint:
    """Holds the state of a run: named tensors per file (`model`, `optimizer`, `rng-0`), and plain values for JSON.

    `state["run_id"]` is the run that saved it. `unchecked` names the tensors, as `<file>/<name>`, that may contain
    numbers that are not finite, for example a mask in a buffer.
    """

    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    state: Mapping[str, Any] = field(default_factory=dict)
    unchecked: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Retention:
    """Says which checkpoints to keep: the `newest`, those of every `every` steps, the best, and the `protected`."""

    newest: int
    every: int | None = None
    best_step: int | None = None
    protected: frozenset[int] = frozenset()

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Return the steps to keep, given all steps in ascending order."""
        regular = {step for step in steps if self.every and step % self.every == 0}
        return set(steps) & {*steps[-self.newest :], *regular, *self.protected, self.best_step}


class CheckpointFolder:
    """Manages the checkpoints of one run, `step-00000100/` and so on. Those with another `run_id` are not removed.

    Raises:
        OSError: any method failed to read or write; existing checkpoints are unchanged.
    """

    def __init__(self, path: Path, run_id: str | None = None) -> None:
        self.path, self.run_id = path, run_id
        self._resumed_from: set[int] = set()
        self._others: set[int] = set()  # steps of checkpoints of other runs, for which a warning was logged

    @classmethod
    def of_run(cls, run_dir: Path, run_id: str | None = None) -> Self:
        """Return the checkpoint folder of a run directory."""
        return cls(run_dir / CHECKPOINTS, run_id)

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, in ascending order."""
        return steps_in(self.path)

    def at(self, step: int) -> Path:
        """Return the path of a step's checkpoint, which need not exist."""
        return self.path / step_folder(step)

    def save(self, step: int, checkpoint: Checkpoint, retention: Retention) -> Path:
        """Write the checkpoint of a step, then remove the checkpoints of this run that `retention` does not keep.

        A valid checkpoint of this step stays unchanged. The checkpoint that the run resumed from is always kept.

        Raises:
            NonFiniteStateError: a tensor contains numbers that are not finite; nothing is written or removed.
        """
        final = self.at(step)
        if not self._is_there(final):
            _check_finite(checkpoint)
            self._commit(final, checkpoint)
        self._link("latest", step)
        if retention.best_step is not None and self.at(retention.best_step).is_dir():
            self._link("best", retention.best_step)
        kept = retention.kept(self.steps()) | self._resumed_from
        self._remove(step for step in self.steps() if step not in kept)
        return final

    def load_latest(self) -> Checkpoint | None:
        """Return the newest verified checkpoint, on the CPU, or None if there is none. Broken ones are set aside."""
        return self._newest(self.steps())

    def load_before(self, step: int, *, every: int, first: int) -> Checkpoint | None:
        """Return the newest verified checkpoint before `step` whose step is `first` or a multiple of `every`."""
        steps = [earlier for earlier in self.steps() if earlier < step]
        return self._newest([earlier for earlier in steps if earlier % every == 0 or earlier == first])

    def _newest(self, steps: Sequence[int]) -> Checkpoint | None:
        for step in reversed(steps):
            try:
                loaded = load_checkpoint(self.at(step))
            except BrokenCheckpointError as error:
                self._quarantine(self.at(step), error)
            else:
                self._resumed_from.add(step)
                return loaded
        return None

    def discard_after(self, step: int) -> None:
        """Remove this run's checkpoints of later steps, because the run has gone back and will repeat those steps."""
        self._remove(later for later in self.steps() if later > step)
        self._link("latest", step)

    def broken(self) -> list[str]:
        """Return the names of checkpoints that were set aside as broken."""
        return sorted(entry.name for entry in self.path.glob(f"{BROKEN}*"))

    def _is_there(self, path: Path) -> bool:
        """Return whether an intact checkpoint of this run exists at the path; set any other one aside."""
        if os.path.lexists(path):  # also true for a broken symlink
            try:
                verify_checkpoint(path)
                if self._is_ours(path):
                    return True
                self._set_aside(path, f"{OTHER}{path.name}", "from another run")
            except BrokenCheckpointError as error:
                self._quarantine(path, error)
        return False

    def _is_ours(self, path: Path) -> bool:
        return not path.is_symlink() and _owner(path) == self.run_id

    def _commit(self, final: Path, checkpoint: Checkpoint) -> None:
        make_folder(self.path)
        for leftover in filter(is_leftover, self.path.iterdir()):  # the run's lock ensures that nobody is writing it
            leftover.unlink() if leftover.is_symlink() else shutil.rmtree(leftover)
        self._check_space(checkpoint)
        partial = self.path / f"{PARTIAL}{final.name}"
        partial.mkdir()
        try:
            (partial / STATE).write_text(json.dumps(checkpoint.state, indent=2) + "\n", encoding="utf-8")
            for name, tensors in checkpoint.tensors.items():
                save_file(_storable(tensors), partial / f"{name}.safetensors")  # only its owner could read this file
                copy_mode(partial / STATE, partial / f"{name}.safetensors")
            files = sorted(partial.iterdir())
            manifest = {file.name: {"size": file.stat().st_size, "sha256": _sync_and_hash(file)} for file in files}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            sync(partial / MANIFEST)
            sync(partial)
            os.rename(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync(self.path)

    def _remove(self, steps: Iterable[int]) -> None:
        for step in list(steps):
            path = self.at(step)
            if not self._is_ours(path):
                if step not in self._others:
                    log.warning("checkpoint %s belongs to another run and is not removed", path.name)
                self._others.add(step)
                continue
            self._delete(path)

    def _delete(self, path: Path) -> None:
        deleted = self.path / f"{DELETED}{path.name}"
        os.rename(path, deleted)  # renamed first, so that a partly deleted folder never looks complete
        shutil.rmtree(deleted)

    def _link(self, name: str, step: int) -> None:
        """Make a link for people. A folder of that name stays: copying a run with its links followed creates one."""
        if (self.path / name).is_dir() and not (self.path / name).is_symlink():
            return
        link_for_people(self.path / name, self.at(step).name)

    def _quarantine(self, path: Path, error: BrokenCheckpointError) -> None:
        self._set_aside(path, f"{BROKEN}{path.name}", f"broken ({error})")

    def _set_aside(self, path: Path, name: str, reason: str) -> None:
        number = 0
        while os.path.lexists(aside := path.with_name(f"{name}-{number}")):
            number += 1
        os.rename(path, aside)
        log.warning("checkpoint %s is %s and was renamed to %s", path.name, reason, aside.name)

    def _check_space(self, checkpoint: Checkpoint) -> None:
        needed = sum(tensor.nbytes for tensors in checkpoint.tensors.values() for tensor in tensors.values())
        free = free_bytes(self.path)
        if free is not None and free < needed * FREE_SPACE_FACTOR:
            raise OSError(f"{self.path}: a checkpoint needs {needed / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free")


def verify_checkpoint(path: Path) -> None:
    """Check that every file in the manifest exists and has the right size and hash.

    Raises:
        BrokenCheckpointError: a file is missing or differs from the manifest, or the manifest itself is damaged.
        OSError: a file can't be read now: no permission, too many open files, a disk that does not answer.
    """
    manifest = _read_json(path / MANIFEST, MANIFEST_BYTES)
    if STATE not in manifest:
        raise BrokenCheckpointError(f"{MANIFEST} does not name {STATE}")
    for name, entry in manifest.items():
        if not FILE_NAME.fullmatch(name):
            raise BrokenCheckpointError(f"{MANIFEST} names {name[:40]!r}, which is not inside the checkpoint")
        if not isinstance(entry, dict) or not {"size", "sha256"} <= entry.keys():
            raise BrokenCheckpointError(f"{MANIFEST} has no size and SHA-256 for {name!r}")
        file = path / name
        if not file.is_file() or file.is_symlink():
            raise BrokenCheckpointError(f"{name!r} is missing")
        if (size := file.stat().st_size) != entry["size"]:
            raise BrokenCheckpointError(f"{name} has {size:,} bytes, but {entry['size']} were written")
        if sha256_of(file) != entry["sha256"]:
            raise BrokenCheckpointError(f"{name} does not have the SHA-256 in {MANIFEST}")


def load_checkpoint(path: Path) -> Checkpoint:
    """Verify and read one checkpoint folder, with tensors on the CPU.

    Raises:
        BrokenCheckpointError: the verification failed, or a file has an unexpected format.
        OSError, MemoryError, RuntimeError: the checkpoint can't be read now, though it may be intact.
    """
    verify_checkpoint(path)
    names = [name for name in _read_json(path / MANIFEST, MANIFEST_BYTES) if name.endswith(".safetensors")]
    try:
        tensors = {name.removesuffix(".safetensors"): load_file(path / name) for name in names}
    except SafetensorError as error:  # the hash was right, so a bug or another program wrote the file
        raise BrokenCheckpointError(f"SafetensorError: {error}") from error
    return Checkpoint(tensors, _read_json(path / STATE, STATE_BYTES))


def _read_json(path: Path, limit: int) -> dict[str, Any]:
    """Return the JSON object in a file; raise BrokenCheckpointError if there is no file or no object."""
    try:
        content = json.loads(read_limited(path, limit))
    except FileNotFoundError:
        raise BrokenCheckpointError(f"{path.name} is missing") from None
    except (NotADirectoryError, IsADirectoryError, ValueError, RecursionError) as error:
        raise BrokenCheckpointError(f"{path.name}: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise BrokenCheckpointError(f"{path.name}: not a JSON object")
    return content


def _check_finite(checkpoint: Checkpoint) -> None:
    for file, tensors in checkpoint.tensors.items():
        for name, tensor in tensors.items():
            if f"{file}/{name}" in checkpoint.unchecked or not tensor.is_floating_point() or not tensor.numel():
                continue
            # One pass without a copy. If there is a NaN, both results are NaN.
            least, greatest = tensor.aminmax()
            if not (least.isfinite() and greatest.isfinite()):
                raise NonFiniteStateError(f"{file}/{name} has numbers that are not finite, so no checkpoint is saved")


def _owner(path: Path) -> str | None:
    """Return the id of the run that saved a checkpoint, or None if it is unknown."""
    try:
        run_id = _read_json(path / STATE, STATE_BYTES).get("run_id")
    except (OSError, BrokenCheckpointError):
        return None
    return None if run_id is None else str(run_id)


def _storable(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors on the CPU, each with separate memory, since safetensors refuses tensors that share it."""
    stored: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if tensor.numel() and memory in seen else tensor
        seen.add(memory)
    return stored


def _sync_and_hash(path: Path) -> str:
    sync(path)
    return sha256_of(path)
