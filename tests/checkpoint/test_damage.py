"""Damaged and hostile checkpoints are detected and set aside, and the checkpoint before them is used."""

import hashlib
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.checkpoints import flip_a_bit, garbage, truncate, zero_the_end

from lmtrain.checkpoint.files import (
    MANIFEST,
    MANIFEST_BYTES,
    STATE_BYTES,
    Checkpoint,
    load_checkpoint,
    verify_checkpoint,
)
from lmtrain.checkpoint.folder import CheckpointFolder, Retention
from lmtrain.errors import BrokenCheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints", run_id="mine")


def save(folder: CheckpointFolder, step: int) -> Path:
    tensors = {"model": {"w": torch.full((5, 7), float(step))}, "optimizer": {"w/exp_avg": torch.ones(3)}}
    return folder.save(step, Checkpoint(tensors, {"run_id": "mine", "train": {"step": step}}), Retention(2))


def nested(path: Path) -> None:
    path.write_text("[" * 500_000, encoding="utf-8")


def link_to_itself_elsewhere(path: Path) -> None:
    elsewhere = path.parent.parent / f"elsewhere-{path.name}"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


def manifest_with(**entries: object) -> Callable[[Path], None]:
    """Return a damage that adds entries to the manifest or replaces them."""

    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **entries}), encoding="utf-8")

    return change


def manifest_of(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content) and None


NOTHING = {"size": 0, "sha256": hashlib.sha256().hexdigest()}


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", truncate),
        ("model.safetensors", zero_the_end),
        ("model.safetensors", link_to_itself_elsewhere),
        ("optimizer.safetensors", flip_a_bit),
        ("state.json", Path.unlink),
        (MANIFEST, garbage),
        (MANIFEST, Path.unlink),
        (MANIFEST, nested),
        (MANIFEST, manifest_of("{}")),
        (MANIFEST, manifest_of("[]")),
        (MANIFEST, manifest_of("state.json".join('""'))),
        (MANIFEST, manifest_of('{"state.json": 3}')),
        (MANIFEST, manifest_of('{"state.json": {"size": 1e999, "sha256": ""}}')),
        (MANIFEST, manifest_with(**{"model.safetensors": {"size": "4", "sha256": 4}})),
        (MANIFEST, manifest_with(**{"../../../../etc/passwd": NOTHING})),
        (MANIFEST, manifest_with(**{"/etc/passwd": NOTHING})),
        (MANIFEST, manifest_with(**{"..": NOTHING})),
        (MANIFEST, manifest_with(**{"": NOTHING})),
        (MANIFEST, manifest_with(**{"a\0b": NOTHING})),
        (MANIFEST, manifest_with(**{"\ud800": NOTHING})),
        (MANIFEST, manifest_with(**{"a" * 5000: NOTHING})),
    ],
)
def test_the_checkpoint_before_a_broken_one_is_used(
    folder: CheckpointFolder, caplog: pytest.LogCaptureFixture, file: str, damage: Callable[[Path], None]
) -> None:
    save(folder, 10)
    damage(save(folder, 20) / file)
    with pytest.raises(BrokenCheckpointError) as caught:
        verify_checkpoint(folder.at(20))
    str(caught.value).encode()  # fails if the message can't be printed and logged
    with caplog.at_level(logging.WARNING):
        latest = folder.load_latest()
    assert latest is not None
    assert latest.state["train"]["step"] == 10
    assert "step-00000020 is broken" in caplog.text
    assert (folder.path / "broken-step-00000020-0").is_dir()
    verify_checkpoint(save(folder, 20))  # the run reaches that step again


def write_with_hash(path: Path, name: str, content: bytes) -> None:
    """Write a file into a checkpoint, and its right size and hash into the manifest."""
    (path / name).write_bytes(content)
    manifest_with(**{name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}})(path / MANIFEST)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", (2**63).to_bytes(8, "little") + b"{}"),
        ("model.safetensors", (2**40).to_bytes(8, "little") + b"{" * 1000),
        ("model.safetensors", (2).to_bytes(8, "little") + b"[]"),
        ("model.safetensors", b""),
        ("state.json", b"[" * 500_000),
        ("state.json", b'{"a": '),
        ("state.json", b"[]"),
        ("state.json", b"\xff\xfe"),
        ("state.json", b" " * (STATE_BYTES + 1)),
    ],
    ids=lambda value: value[:8].hex() if isinstance(value, bytes) else value,
)
def test_an_invalid_file_with_the_right_hash_is_broken(folder: CheckpointFolder, name: str, content: bytes) -> None:
    save(folder, 10)
    write_with_hash(save(folder, 20), name, content)
    verify_checkpoint(folder.at(20))
    with pytest.raises(BrokenCheckpointError):
        load_checkpoint(folder.at(20))
    latest = folder.load_latest()
    assert latest is not None
    assert latest.state["train"]["step"] == 10


def test_a_manifest_that_is_too_large_is_broken(folder: CheckpointFolder) -> None:
    path = save(folder, 10)
    with (path / MANIFEST).open("ab") as file:
        file.truncate(200 * MANIFEST_BYTES)  # a sparse file, which takes no disk space
    with pytest.raises(BrokenCheckpointError, match="larger than"):
        verify_checkpoint(path)


def test_a_checkpoint_whose_state_is_too_large_belongs_to_no_run(
    folder: CheckpointFolder, caplog: pytest.LogCaptureFixture
) -> None:
    with (save(folder, 10) / "state.json").open("ab") as file:
        file.truncate(STATE_BYTES + 1)
    folder.discard_after(5)
    assert folder.steps() == [10]
    assert "belongs to another run" in caplog.text


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Return a folder that other users can enter, unlike tmp_path."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("locked", ["model.safetensors", "state.json", MANIFEST, ""])
def test_files_without_read_permission_are_not_broken(open_folder: Path, locked: str) -> None:
    folder = CheckpointFolder(open_folder / "checkpoints")
    path = save(folder, 10)
    (path / locked).chmod(0)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65534)  # root may read everything
            for call in (lambda: verify_checkpoint(path), lambda: load_checkpoint(path), folder.load_latest):
                with pytest.raises(PermissionError):
                    call()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (path / locked).chmod(stat.S_IRWXU)
    assert folder.load_latest() is not None
    assert folder.broken() == []


@pytest.mark.slow
def test_a_lack_of_memory_does_not_count_as_damage(folder: CheckpointFolder) -> None:
    for step in (1, 2):
        folder.save(step, Checkpoint({"model": {"w": torch.zeros(30_000_000)}}), Retention(newest=9))
    script = f"""
import resource
from pathlib import Path
from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.errors import BrokenCheckpointError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 60_000_000,) * 2)  # a checkpoint has 120 MB
try:
    CheckpointFolder(Path({str(folder.path)!r})).load_latest()
except (MemoryError, OSError, RuntimeError) as error:
    print(type(error) is not BrokenCheckpointError)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "True\n", done.stderr
    assert folder.steps() == [1, 2]
    assert folder.broken() == []


def test_a_copy_whose_links_became_folders_can_be_saved_into(folder: CheckpointFolder, tmp_path: Path) -> None:
    save(folder, 1)
    shutil.copytree(folder.path, tmp_path / "copy")  # follows links
    copied = CheckpointFolder(tmp_path / "copy")
    save(copied, 2)
    assert copied.steps() == [1, 2]
    latest = copied.load_latest()
    assert latest is not None
    assert latest.state["train"]["step"] == 2


def test_load_before_finds_the_last_regular_checkpoint(folder: CheckpointFolder) -> None:
    for step in (7, 8, 9, 12):
        folder.save(step, Checkpoint({}, {"train": {"step": step}}), Retention(newest=9))
    found = [folder.load_before(13, every=4, first=7), folder.load_before(12, every=4, first=7)]
    found += [folder.load_before(8, every=4, first=7), folder.load_before(8, every=4, first=0)]
    assert [checkpoint and checkpoint.state["train"]["step"] for checkpoint in found] == [12, 8, 7, None]
