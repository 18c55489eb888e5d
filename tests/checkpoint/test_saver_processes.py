"""The saver on a full disk, in processes that are killed or exit during a save, and over many saves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.checkpoints import a_checkpoint, value

from lmtrain.checkpoint.files import load_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder, Retention


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints")


def child(script: str, path: Path) -> "subprocess.Popen[str]":
    head = f"""
import os, resource, signal, sys, time, torch
from pathlib import Path
from lmtrain.checkpoint.files import Checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder, Retention
from lmtrain.checkpoint.saver import Saver
folder = CheckpointFolder(Path({str(path)!r}))
"""
    command = [sys.executable, "-c", head + script]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_leaves_no_checkpoint(folder: CheckpointFolder) -> None:
    folder.save(10, a_checkpoint(10.0), Retention(2))
    # A write beyond the limit fails in the middle of a file, as on a full disk.
    script = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
saver = Saver(folder)
saver.save(20, Checkpoint({"model": {"w": torch.zeros(100_000)}}), Retention(1))
try:
    while True:
        saver.check()
        time.sleep(0.01)
except Exception as error:
    print("refused:", error)
saver.wait()
"""
    output, errors = child(script, folder.path).communicate(timeout=60)
    assert output.startswith("refused:"), errors
    assert sorted(entry.name for entry in folder.path.iterdir()) == ["latest", "step-00000010"]
    assert value(folder, 10) == 10.0


@pytest.mark.slow
def test_memory_does_not_grow_over_many_saves(folder: CheckpointFolder) -> None:
    script = """
torch.set_num_threads(1)
state = {f"w{i}": torch.randn(1_000_000) for i in range(10)}  # 40 MB
with Saver(folder) as saver:
    for step in range(1, 17):
        saver.save(step, Checkpoint({"model": state}), Retention(1))
        saver.wait()
        if step == 4:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    output, errors = child(script, folder.path).communicate(timeout=120)
    assert output, errors
    assert int(output) < 20_000  # KiB: half of one copy
    assert folder.steps() == [16]


SAVE_FOREVER = """
with Saver(folder) as saver:
    for step in range(1, 10_000):
        state = {f"w{i}": torch.full((200_000,), float(step)) for i in range(5)}
        saver.save(step, Checkpoint({"model": state}), Retention(2))
        print(step, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.02])
@pytest.mark.parametrize("end", ["kill", "exit"])
def test_a_process_that_ends_during_a_save_leaves_only_complete_checkpoints(
    folder: CheckpointFolder, end: str, delay: float
) -> None:
    ending = f"        if step == 6: time.sleep({delay}); os._exit(7)\n" if end == "exit" else ""
    process = child(SAVE_FOREVER + ending, folder.path)
    assert process.stdout is not None
    for line in process.stdout:
        if end == "kill" and int(line) == 6:
            time.sleep(delay)
            process.kill()
            break
    process.communicate(timeout=60)
    assert process.returncode == (7 if end == "exit" else -signal.SIGKILL)
    last = folder.steps()[-1]
    assert last >= 5  # the sixth save began after the fifth had finished
    for step in folder.steps():
        assert {w[0].item() for w in load_checkpoint(folder.at(step)).tensors["model"].values()} == {float(step)}
    after = CheckpointFolder(folder.path)
    latest = after.load_latest()
    assert latest is not None
    assert torch.equal(latest.tensors["model"]["w0"], torch.full((200_000,), float(last)))
    assert after.broken() == []
    after.save(last + 1, a_checkpoint(1.0), Retention(1))
    assert [name for name in os.listdir(folder.path) if name.startswith(".tmp")] == []
