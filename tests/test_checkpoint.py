"""Checkpoints: what is saved comes back in every bit, and what is broken is noticed and set aside."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lmtrain.checkpoint import MANIFEST, BrokenCheckpointError, Checkpoint, CheckpointFolder, load, verify


def a_checkpoint(seed: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 7, generator=generator)
    return Checkpoint(
        tensors={
            "model": {
                "a": weight,
                "tied": weight,
                "half": weight.bfloat16(),
                "strided": weight.t(),
                "empty": torch.zeros(0),
            },
            "optimizer": {"a/exp_avg": weight.double(), "a/step": torch.tensor(3.0)},
            "rng-0": {"torch": torch.get_rng_state()},
        },
        state={"train": {"step": seed, "best_val_loss": None}, "plain": [1, 2.5, "x"]},
    )


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints")


def save(folder: CheckpointFolder, step: int, best_step: int | None = None, keep: int = 2) -> Path:
    return folder.save(step, a_checkpoint(step), keep=keep, best_step=best_step)


def test_round_trip_in_every_bit(folder: CheckpointFolder) -> None:
    written, read = a_checkpoint(3), load(save(folder, 3))
    assert read.state == written.state
    assert read.tensors.keys() == written.tensors.keys()
    for name, tensors in written.tensors.items():
        assert read.tensors[name].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert read.tensors[name][key].dtype == tensor.dtype
            assert torch.equal(read.tensors[name][key], tensor)


def test_the_files_are_safetensors_and_json_alone(folder: CheckpointFolder) -> None:
    path = save(folder, 3)
    assert sorted(file.name for file in path.iterdir()) == [
        MANIFEST,
        "model.safetensors",
        "optimizer.safetensors",
        "rng-0.safetensors",
        "state.json",
    ]
    assert not [file for file in folder.path.iterdir() if file.name.startswith(".tmp")]


def test_newest_and_best_are_kept_and_linked(folder: CheckpointFolder) -> None:
    for step in (10, 20, 30, 40, 50):
        save(folder, step, best_step=20 if step >= 20 else 10)
    assert folder.steps() == [20, 40, 50]
    assert os.readlink(folder.path / "latest") == "step-00000050"
    assert os.readlink(folder.path / "best") == "step-00000020"
    latest = folder.load_latest()
    assert latest is not None
    assert latest.state["train"]["step"] == 50


def test_a_valid_step_is_never_written_again(folder: CheckpointFolder) -> None:
    path = save(folder, 10)
    before = (path / "model.safetensors").stat().st_mtime_ns, (path / MANIFEST).read_bytes()
    folder.save(10, a_checkpoint(99), keep=2, best_step=None)
    assert before == ((path / "model.safetensors").stat().st_mtime_ns, (path / MANIFEST).read_bytes())


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def zero_the_end(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, size // 2)
    os.truncate(path, size)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(50))


def outside(path: Path) -> None:
    manifest = json.loads(path.read_text())
    manifest["../../../etc/passwd"] = {"size": 1, "sha256": "0"}
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", truncate),
        ("model.safetensors", zero_the_end),
        ("optimizer.safetensors", flip_a_bit),
        ("state.json", Path.unlink),
        (MANIFEST, garbage),
        (MANIFEST, Path.unlink),
        (MANIFEST, outside),
    ],
)
def test_the_one_before_a_broken_one_is_used(
    folder: CheckpointFolder, caplog: pytest.LogCaptureFixture, file: str, damage: Callable[[Path], None]
) -> None:
    save(folder, 10)
    damage(save(folder, 20) / file)
    with pytest.raises(BrokenCheckpointError):
        verify(folder.at(20))
    with caplog.at_level(logging.WARNING):
        latest = folder.load_latest()
    assert latest is not None
    assert latest.state["train"]["step"] == 10
    assert "step-00000020 is broken" in caplog.text
    assert (folder.path / "broken-step-00000020-0").is_dir()
    verify(save(folder, 20))  # the run gets there again


def test_a_save_that_fails_leaves_the_ones_before(folder: CheckpointFolder, tmp_path: Path) -> None:
    save(folder, 10)
    # A file larger than the limit fails in the middle of a write, as on a full disk.
    script = f"""
import resource, signal, torch
from pathlib import Path
from lmtrain.checkpoint import Checkpoint, CheckpointFolder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
folder = CheckpointFolder(Path({str(folder.path)!r}))
try:
    folder.save(20, Checkpoint({{"model": {{"w": torch.zeros(100_000)}}}}, {{}}), keep=1, best_step=None)
except Exception as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("refused:"), done.stderr
    assert sorted(entry.name for entry in folder.path.iterdir()) == ["latest", "step-00000010"]
    verify(folder.at(10))


def test_what_a_kill_left_is_cleared_away(folder: CheckpointFolder) -> None:
    save(folder, 10)
    (folder.path / ".tmp-latest").symlink_to("step-00000010")
    (folder.path / ".tmp-step-00000020").mkdir()
    (folder.path / ".tmp-step-00000020" / "model.safetensors").write_bytes(b"half")
    (folder.path / ".tmp-del-step-00000005").mkdir()
    save(folder, 20)
    assert sorted(entry.name for entry in folder.path.iterdir()) == ["latest", "step-00000010", "step-00000020"]


def test_no_space_is_seen_before_writing(folder: CheckpointFolder) -> None:
    folder.path.mkdir()
    huge = torch.zeros(1).expand(2**50)  # takes no memory, but counts as what it would write
    with pytest.raises(OSError, match="GB are free"):
        folder.save(1, Checkpoint({"model": {"w": huge}}), keep=1, best_step=None)
    assert list(folder.path.iterdir()) == []


def test_nothing_there(folder: CheckpointFolder) -> None:
    assert folder.load_latest() is None
    assert folder.steps() == []
