"""Checkpoints: folders of safetensors and JSON that are either complete and verified, or not there.

A checkpoint is written into a hidden folder, flushed to disk, hashed into `MANIFEST.json` and renamed into place;
a kill at any moment leaves the ones before it untouched. Nothing is ever overwritten, and no pickle is read.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lmtrain.durable import sha256_of, sync

log = logging.getLogger(__name__)

MANIFEST = "MANIFEST.json"
PARTIAL, DELETED, BROKEN = ".tmp-", ".tmp-del-", "broken-"
FREE_SPACE_FACTOR = 1.1  # beyond the tensors' own bytes


@dataclass(frozen=True)
class Checkpoint:
    """One state: named tensors by file (`model`, `optimizer`, `rng-0`), and plain values as JSON."""

    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    state: Mapping[str, Any] = field(default_factory=dict)


class BrokenCheckpointError(RuntimeError):
    """A checkpoint whose files are not those that were written."""


class CheckpointFolder:
    """The checkpoints of one run, `step-00000100/` and so on.

    Raises:
        OSError: from any method, if the disk refuses; the checkpoints already there are untouched then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not self.path.is_dir():
            return []
        names = (re.fullmatch(r"step-(\d+)", entry.name) for entry in self.path.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def at(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def save(self, step: int, checkpoint: Checkpoint, *, keep: int, best_step: int | None) -> Path:
        """Commits the state of a step, then removes all but the newest `keep` and the best.

        A valid checkpoint of this step stays as it is.
        """
        final = self.at(step)
        if final.exists():
            try:
                verify(final)
                return final
            except BrokenCheckpointError as error:
                self._quarantine(final, error)
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in self.path.glob(f"{PARTIAL}*"):  # of a killed save or prune; the run's lock says they are ours
            leftover.unlink() if leftover.is_symlink() else shutil.rmtree(leftover)
        self._check_space(checkpoint)
        partial = self.path / f"{PARTIAL}{final.name}"
        partial.mkdir()
        try:
            for name, tensors in checkpoint.tensors.items():
                save_file(_storable(tensors), partial / f"{name}.safetensors")
            (partial / "state.json").write_text(json.dumps(checkpoint.state, indent=2) + "\n")
            files = sorted(partial.iterdir())
            manifest = {file.name: {"size": file.stat().st_size, "sha256": _sync_and_hash(file)} for file in files}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
            sync(partial / MANIFEST)
            sync(partial)
            os.rename(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync(self.path)
        self._link("latest", step)
        if best_step is not None and self.at(best_step).is_dir():
            self._link("best", best_step)
        self._prune(keep, best_step)
        return final

    def load_latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies, on the CPU; broken ones are set aside, loudly. None if there is none."""
        for step in reversed(self.steps()):
            try:
                return load(self.at(step))
            except BrokenCheckpointError as error:
                self._quarantine(self.at(step), error)
        return None

    def broken(self) -> list[str]:
        """Names of the checkpoints that were set aside."""
        return sorted(entry.name for entry in self.path.glob(f"{BROKEN}*"))

    def _prune(self, keep: int, best_step: int | None) -> None:
        steps = self.steps()
        kept = {*steps[-keep:], best_step}
        for step in steps:
            if step not in kept:
                doomed = self.path / f"{DELETED}{self.at(step).name}"
                os.rename(self.at(step), doomed)  # at once, so that no half-deleted folder looks complete
                shutil.rmtree(doomed)

    def _link(self, name: str, step: int) -> None:
        link = self.path / f"{PARTIAL}{name}"
        link.unlink(missing_ok=True)
        link.symlink_to(self.at(step).name)
        os.replace(link, self.path / name)

    def _quarantine(self, path: Path, error: BrokenCheckpointError) -> None:
        number = 0
        while (aside := path.with_name(f"{BROKEN}{path.name}-{number}")).exists():
            number += 1
        os.rename(path, aside)
        log.warning("checkpoint %s is broken (%s); it is set aside as %s", path.name, error, aside.name)

    def _check_space(self, checkpoint: Checkpoint) -> None:
        needed = sum(tensor.nbytes for tensors in checkpoint.tensors.values() for tensor in tensors.values())
        free = shutil.disk_usage(self.path).free
        if free < needed * FREE_SPACE_FACTOR:
            raise OSError(f"{self.path}: a checkpoint needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free")


def verify(path: Path) -> None:
    """Raises BrokenCheckpointError unless every file of the manifest is there, of its size and with its hash."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        files = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenCheckpointError(f"{MANIFEST}: {type(error).__name__}") from error
    for name, (size, sha256) in files.items():
        if Path(name).name != name:
            raise BrokenCheckpointError(f"{MANIFEST} names {name!r}, which is not inside the checkpoint")
        file = path / name
        if not file.is_file() or file.is_symlink():
            raise BrokenCheckpointError(f"{name} is missing")
        if file.stat().st_size != size:
            raise BrokenCheckpointError(f"{name} has {file.stat().st_size:,} bytes, {size:,} were written")
        if sha256_of(file) != sha256:
            raise BrokenCheckpointError(f"{name} does not have the SHA-256 that was written")


def load(path: Path) -> Checkpoint:
    """Verifies and reads one checkpoint folder, tensors on the CPU.

    Raises:
        BrokenCheckpointError: it does not verify, or can't be read.
    """
    verify(path)
    try:
        names = [name for name in json.loads((path / MANIFEST).read_bytes()) if name.endswith(".safetensors")]
        tensors = {name.removesuffix(".safetensors"): load_file(path / name) for name in names}
        return Checkpoint(tensors, json.loads((path / "state.json").read_bytes()))
    except Exception as error:  # verified, so written wrong: by a bug or another program
        raise BrokenCheckpointError(f"{type(error).__name__}: {error}") from error


def _storable(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU and contiguous, each with memory of its own: safetensors refuses tensors that share it."""
    stored: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, int]] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        key = (tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()))
        stored[name] = tensor.clone() if tensor.numel() and key in seen else tensor
        seen.add(key)
    return stored


def _sync_and_hash(path: Path) -> str:
    sync(path)
    return sha256_of(path)
