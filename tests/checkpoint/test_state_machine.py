"""After saves, crashes, damage and resumes in any order, the last good state is there, and no partial one is used.

Hypothesis draws the order. The files, the crashes and the processes are real.
"""

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lmtrain.checkpoint.files import MANIFEST, Checkpoint, load_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder, Retention
from lmtrain.errors import BrokenCheckpointError, NonFiniteStateError

FILES = (MANIFEST, "model.safetensors", "optimizer.safetensors", "state.json")
CRASHED = 3
# Audit events, which Python raises just before the operation.
EVENTS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir", "os.symlink", "shutil.rmtree"}


def a_checkpoint(step: int, number: int) -> Checkpoint:
    """Return a checkpoint whose content differs for each number, even for the same step."""
    weights = torch.randn(40, generator=torch.Generator().manual_seed(number))
    tensors = {"model": {"w": weights, "tied": weights}, "optimizer": {"w/exp_avg": weights.double() + 3}}
    return Checkpoint(tensors, {"run_id": "mine", "train": {"step": step}, "number": number})


def assert_same(read: Checkpoint, written: Checkpoint) -> None:
    assert read.state == written.state
    assert read.tensors.keys() == written.tensors.keys()
    for file, tensors in written.tensors.items():
        assert read.tensors[file].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(read.tensors[file][name], tensor)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zero(path: Path) -> None:
    size = path.stat().st_size
    cut(path)
    os.truncate(path, size)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


def garbage(path: Path) -> None:
    path.write_bytes(b"\x93garbage" * 20)


damages = st.sampled_from([cut, zero, flip_a_bit, garbage, Path.unlink])
retentions = st.builds(
    Retention,
    newest=st.integers(1, 3),
    every=st.none() | st.integers(2, 4),
    best_step=st.none() | st.integers(1, 12),
    protected=st.frozensets(st.integers(1, 12), max_size=2),
)


def exit_at(event: int) -> None:
    """Make this process exit just before its file operation number `event`, without clean-up."""
    seen = 0

    def count(name: str, arguments: object) -> None:
        nonlocal seen
        seen += name in EVENTS
        if seen == event:
            os._exit(CRASHED)

    sys.addaudithook(count)


def die_writing(size: int) -> None:
    """Make the kernel kill this process when it writes a file beyond this size."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def in_a_child(arm: Callable[[], None], work: Callable[[], object]) -> bool:
    """Do the work in a child process; return whether it was finished before the process crashed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            arm()
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, CRASHED, -signal.SIGXFSZ)
    return code == 0


class Saves(RuleBasedStateMachine):
    """Compares the folder with a model of it.

    `intact` maps the step of each intact checkpoint to its number, and `damaged` has the steps of the others. A damaged
    checkpoint whose run id can't be read is in `without_owner`, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp()) / "checkpoints"
        self.folder = CheckpointFolder(self.path, "mine")
        self.intact: dict[int, int] = {}
        self.damaged: set[int] = set()
        self.without_owner: set[int] = set()
        self.resumed_from: set[int] = set()
        self.step = self.number = self.set_aside = 0

    def teardown(self) -> None:
        for step, number in self.intact.items():
            assert_same(load_checkpoint(self.folder.at(step)), a_checkpoint(step, number))
        shutil.rmtree(self.path.parent)

    @rule(retention=retentions)
    def save(self, retention: Retention) -> None:
        self._new_step()
        self.folder.save(self.step, a_checkpoint(self.step, self.number), retention)
        self.intact[self.step] = self.number
        self._forget(self._pruned(retention))

    @precondition(lambda self: self.intact or self.damaged)
    @rule(retention=retentions, damage=st.none() | damages, file=st.sampled_from(FILES))
    def save_the_newest_again(self, retention: Retention, damage: Callable[[Path], None] | None, file: str) -> None:
        step = max(self._steps())
        if damage and step in self.intact and len(self.intact) > 1:
            self._damage(step, damage, file)
        self.number += 1
        self.folder.save(step, a_checkpoint(step, self.number), retention)
        if step in self.damaged:
            self.damaged.remove(step)
            self.without_owner.discard(step)
            self.set_aside += 1
            self.intact[step] = self.number
        self._forget(self._pruned(retention))

    @rule(retention=retentions, event=st.integers(1, 50))
    def crash_between_two_changes(self, retention: Retention, event: int) -> None:
        self._crash(retention, lambda: exit_at(event))

    @rule(retention=retentions, size=st.integers(0, 700))
    def crash_in_a_write(self, retention: Retention, size: int) -> None:
        self._crash(retention, lambda: die_writing(size))

    @rule(retention=retentions, bad=st.sampled_from([float("nan"), float("inf")]), file=st.sampled_from(["model", "m"]))
    def refuse_numbers_that_are_not_finite(self, retention: Retention, bad: float, file: str) -> None:
        before = sorted(self.path.rglob("*"))
        tensors = {**a_checkpoint(0, 0).tensors, file: {"bad": torch.tensor([1.0, bad])}}
        with pytest.raises(NonFiniteStateError):
            self.folder.save(max(self._steps(), default=0) + 1, Checkpoint(tensors), retention)
        assert sorted(self.path.rglob("*")) == before

    @precondition(lambda self: len(self.intact) > 1)
    @rule(data=st.data(), damage=damages, file=st.sampled_from(FILES))
    def damage(self, data: st.DataObject, damage: Callable[[Path], None], file: str) -> None:
        self._damage(data.draw(st.sampled_from(sorted(self.intact))), damage, file)

    @rule()
    def resume(self) -> None:
        """Load the newest checkpoint, as a new process does."""
        self.folder = CheckpointFolder(self.path, "mine")
        loaded = self.folder.load_latest()
        self.step = max(self.intact, default=0)
        if loaded is None:
            assert not self.intact
        else:
            assert_same(loaded, a_checkpoint(self.step, self.intact[self.step]))
        self.resumed_from = {self.step} & set(self.intact)
        later = {step for step in self.damaged if step > self.step}
        self.damaged -= later
        self.without_owner -= later
        self.set_aside += len(later)

    @invariant()
    def the_folder_matches_the_model(self) -> None:
        assert set(self.folder.steps()) == self._steps()
        assert len(self.folder.broken()) == self.set_aside
        if self.intact:
            newest = max(self.intact)
            assert_same(load_checkpoint(self.folder.at(newest)), a_checkpoint(newest, self.intact[newest]))

    def _crash(self, retention: Retention, arm: Callable[[], None]) -> None:
        self._new_step()
        before, checkpoint = self._steps(), a_checkpoint(self.step, self.number)
        done = in_a_child(arm, lambda: self.folder.save(self.step, checkpoint, retention))
        found = set(CheckpointFolder(self.path).steps())
        if self.step in found:  # it was renamed, so it must be complete
            assert_same(load_checkpoint(self.folder.at(self.step)), checkpoint)
            self.intact[self.step] = self.number
        else:
            assert not done
            assert found == before  # nothing is removed before the new checkpoint exists
        removed = self._steps() - found
        pruned = self._pruned(retention)
        assert removed == pruned if done else removed <= pruned
        self._forget(removed)
        self.resume()

    def _damage(self, step: int, damage: Callable[[Path], None], file: str) -> None:
        damage(self.folder.at(step) / file)
        with pytest.raises(BrokenCheckpointError):
            load_checkpoint(self.folder.at(step))
        del self.intact[step]
        self.damaged.add(step)
        if not is_mine(self.folder.at(step)):
            self.without_owner.add(step)  # so this run must not remove it

    def _new_step(self) -> None:
        self.step = max(self._steps(), default=0) + 1
        self.number += 1

    def _steps(self) -> set[int]:
        return set(self.intact) | self.damaged

    def _pruned(self, retention: Retention) -> set[int]:
        newest_first = sorted(self._steps(), reverse=True)
        return {
            step
            for age, step in enumerate(newest_first)
            if age >= retention.newest
            and not (retention.every and step % retention.every == 0)
            and step not in {retention.best_step, *retention.protected, *self.resumed_from}
            and step not in self.without_owner
        }

    def _forget(self, steps: set[int]) -> None:
        self.damaged -= steps
        self.intact = {step: number for step, number in self.intact.items() if step not in steps}


def is_mine(path: Path) -> bool:
    """Return whether a checkpoint, which may be damaged, still has the id of this run."""
    try:
        return bool(json.loads((path / "state.json").read_bytes())["run_id"] == "mine")
    except (OSError, ValueError, KeyError, TypeError):
        return False


Saves.TestCase.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestSaves = pytest.mark.slow(Saves.TestCase)
