"""Checkpoints as folders of safetensors and JSON files. A checkpoint is complete and verified, or does not exist.

A checkpoint is written into a hidden folder, flushed to disk, hashed into `MANIFEST.json` and then renamed. A kill at
any moment leaves the earlier checkpoints untouched. Nothing is ever overwritten, and no pickle is read.
"""

import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lmtrain.checkpoint.files import (
    STATE,
    STATE_BYTES,
    Checkpoint,
    Entries,
    check_finite,
    load_checkpoint,
    read_checkpoint_json,
    verify_checkpoint,
    write_files,
    write_manifest,
)
from lmtrain.checkpoint.steps import CHECKPOINTS, DELETED, PARTIAL, is_leftover, step_folder, steps_in
from lmtrain.errors import BrokenCheckpointError
from lmtrain.files.durable import make_folder, sync
from lmtrain.files.unsupported import free_bytes, link_for_people

log = logging.getLogger(__name__)

BROKEN, OTHER = "broken-", "other-"
FREE_SPACE_FACTOR = 1.1  # free space that a save needs, relative to the bytes of the tensors


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
            check_finite(checkpoint)
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
            write_manifest(partial, self._write(partial, checkpoint))
            os.rename(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync(self.path)

    def _write(self, partial: Path, checkpoint: Checkpoint) -> Entries:
        """Write all files of a checkpoint, and return what the manifest says about them."""
        return write_files(partial, checkpoint)

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
        needed *= max((count for _, count in checkpoint.parts.values()), default=1)  # others write as much
        free = free_bytes(self.path)
        if free is not None and free < needed * FREE_SPACE_FACTOR:
            raise OSError(f"{self.path}: a checkpoint needs {needed / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free")


def _owner(path: Path) -> str | None:
    """Return the id of the run that saved a checkpoint, or None if it is unknown."""
    try:
        run_id = read_checkpoint_json(path / STATE, STATE_BYTES).get("run_id")
    except (OSError, BrokenCheckpointError):
        return None
    return None if run_id is None else str(run_id)
