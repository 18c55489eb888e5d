"""Checkpoints of processes that share a model: each writes its part into the same folder, and one commits them.

The first process begins a save and waits for the files of all others, whose sizes and hashes it writes into the
manifest, before it renames the folder. So a checkpoint has the parts of all processes, or does not exist.
"""

import time
from pathlib import Path
from typing import Any

from lmtrain.checkpoint.files import Checkpoint, Entries, check_finite, write_files
from lmtrain.checkpoint.folder import CheckpointFolder, Retention
from lmtrain.checkpoint.saver import Saver
from lmtrain.checkpoint.several.following import ReadingSaver, ReadOnlyFolder
from lmtrain.checkpoint.several.together import PATIENCE_S
from lmtrain.checkpoint.steps import CHECKPOINTS
from lmtrain.errors import NonFiniteStateError
from lmtrain.parallel.base import Parallel
from lmtrain.parallel.peers import POLL_S, Peers

SAVE_TIMEOUT_S = 3600.0  # for a slow disk; a process that has failed is noticed at once
BEGIN, WRITTEN = "begin save", "written"  # topics; the number of the save follows


class LeadingFolder(CheckpointFolder):
    """The folder as the first process sees it, which begins and commits every save."""

    def __init__(self, path: Path, run_id: str | None, peers: Peers, writers: int) -> None:
        super().__init__(path, run_id)
        self.peers, self.writers = peers, writers
        self._saves, self._begun = 0, False

    def save(self, step: int, checkpoint: Checkpoint, retention: Retention) -> Path:
        self._saves, self._begun = self._saves + 1, False
        try:
            return super().save(step, checkpoint, retention)
        finally:
            if not self._begun:  # it is there already, or can't be saved
                self.peers.tell(f"{BEGIN} {self._saves}", None)

    def _write(self, partial: Path, checkpoint: Checkpoint) -> Entries:
        self._begun = True
        self.peers.tell(f"{BEGIN} {self._saves}", partial.name)
        entries: Entries = {}
        failed: Exception | None = None
        try:
            entries |= write_files(partial, checkpoint)
        except Exception as error:
            failed = error
        for rank in range(1, self.writers):  # wait for all of them, also after a failure: they write into this folder
            answer: dict[str, Any] = self.peers.ask(f"{WRITTEN} {self._saves}", rank, SAVE_TIMEOUT_S)
            self.peers.forget(f"{WRITTEN} {self._saves}", rank)
            if "error" in answer and failed is None:
                failed = (NonFiniteStateError if answer["not_finite"] else OSError)(f"rank {rank}: {answer['error']}")
            entries |= answer.get("files", {})
        self.peers.forget(f"{BEGIN} {self._saves}", 0)
        if failed is not None:
            raise failed
        return dict(sorted(entries.items()))


class PartFolder(ReadOnlyFolder):
    """The folder as the other processes see it: each writes its part, and nothing else."""

    def __init__(self, path: Path, peers: Peers) -> None:
        super().__init__(path)
        self.peers, self._saves = peers, 0

    def save(self, step: int, checkpoint: Checkpoint, retention: Retention) -> Path:
        """Write this process's part when the first one has begun, which also reports an error of this one."""
        self._saves += 1
        if (name := self.peers.ask(f"{BEGIN} {self._saves}", 0, SAVE_TIMEOUT_S)) is not None:
            try:
                check_finite(checkpoint)
                wait_until_visible(self.path / name)
                answer: dict[str, Any] = {"files": write_files(self.path / name, checkpoint, with_state=False)}
            except Exception as error:  # the first process must not wait for an answer
                answer = {
                    "error": str(error) or type(error).__name__,
                    "not_finite": isinstance(error, NonFiniteStateError),
                }
            self.peers.tell(f"{WRITTEN} {self._saves}", answer)
        return self.at(step)


def folder_of_first(run_dir: Path, run_id: str, parallel: Parallel, peers: Peers | None) -> CheckpointFolder:
    """Return the checkpoint folder of a run for its first process."""
    if parallel.layout is None or parallel.layout.ranks == 1 or peers is None:
        return CheckpointFolder.of_run(run_dir, run_id)
    return LeadingFolder(run_dir / CHECKPOINTS, run_id, peers, parallel.layout.ranks)


def saver_of_other(run_dir: Path, parallel: Parallel, peers: Peers) -> Saver:
    """Return what a process other than the first one saves: its part of a shared model, or nothing."""
    if parallel.layout is None or parallel.layout.ranks == 1 or not parallel.layout.writes:
        return ReadingSaver(ReadOnlyFolder.of_run(run_dir))
    return Saver(PartFolder(run_dir / CHECKPOINTS, peers))


def wait_until_visible(folder: Path) -> None:
    """Wait for a folder that another host has made; a network disk may need a minute.

    Raises:
        FileNotFoundError: It is not there in time.
    """
    end = time.monotonic() + PATIENCE_S
    while not folder.is_dir():
        if time.monotonic() > end:
            raise FileNotFoundError(f"{folder}: not there; the run directory must be a folder that all hosts share")
        time.sleep(POLL_S)
