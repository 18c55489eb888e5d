"""A run shows its phase to other processes exactly, and without looking at the stacks of its threads."""

import subprocess
import sys
from pathlib import Path

import pytest

from lmtrain.verify.phases import ENDING, PHASES, STARTING, PhaseFile, find_function


@pytest.mark.parametrize("name", [name for names in PHASES.values() for name in names])
def test_the_function_that_shows_a_phase_exists(name: str) -> None:
    owner, attribute, function = find_function(name)
    assert name == f"{function.__module__}:{function.__qualname__}"
    assert vars(owner)[attribute] is function  # a plain function, so that a wrapper can replace it


def test_each_phase_belongs_to_one_function() -> None:
    functions = [find_function(name)[2] for names in PHASES.values() for name in names]
    assert len(set(functions)) == len(functions) == 4


# Prints the phase at many moments, and is killed at last.
RECORDS = """
import os
import sys
import threading
from pathlib import Path

import lmtrain.loop.evaluation
from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.trainer import Trainer
from lmtrain.verify.phases import PhaseFile, PhaseRecorder

phases = PhaseFile(Path(sys.argv[1]))
events = []


def show(*_):
    events.append(phases.now())


def save(*_):
    saving.set()
    release.wait(60)
    show()


def fit(*_):
    show()
    lmtrain.loop.evaluation.evaluate()
    thread = threading.Thread(target=CheckpointFolder.save, args=(None,))
    thread.start()
    saving.wait(60)
    show()
    lmtrain.loop.evaluation.evaluate()
    release.set()
    thread.join()
    show()
    try:
        CheckpointFolder._delete(None)
    except RuntimeError:
        show()


def fail(*_):
    show()
    raise RuntimeError


release, saving = threading.Event(), threading.Event()
lmtrain.loop.evaluation.evaluate, Trainer.fit, CheckpointFolder.save = show, fit, save
CheckpointFolder._delete = fail
PhaseRecorder(Path(sys.argv[1])).install()
show()
Trainer.fit(None)
show()
print(*events, flush=True)
show = lambda *_: os.kill(os.getpid(), 9)
Trainer.fit(None)
"""


def test_phases_begin_and_end_with_their_functions_in_any_thread(tmp_path: Path) -> None:
    phases = PhaseFile(tmp_path / "phase")
    assert (phases.now(), phases.began(), phases.seen()) == (STARTING, None, frozenset())
    done = subprocess.run(
        [sys.executable, "-c", RECORDS, phases.path], capture_output=True, encoding="utf-8", timeout=100
    )
    assert done.returncode == -9, done.stderr
    assert done.stdout.split() == [
        STARTING,
        "training",
        "evaluating",
        "saving",  # a checkpoint is saved in the background
        "saving",  # also while the model is evaluated
        "saving",
        "training",
        "pruning",
        "training",
        ENDING,
    ]
    # The file remains when the process is killed, here in the second call of Trainer.fit.
    assert (phases.now(), phases.seen()) == ("training", {STARTING, *PHASES, ENDING})
    assert phases.began() is not None
