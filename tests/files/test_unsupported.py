"""File systems that lack a call: a real one where it can be mounted, otherwise a call that fails in the same way."""

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lmtrain.checkpoint.files import Checkpoint, load_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder, Retention
from lmtrain.files import unsupported
from lmtrain.files.lock import FileLock, locked_folder
from lmtrain.files.unsupported import free_bytes, link_for_people
from lmtrain.run.directory import RunDirectory


@pytest.fixture(autouse=True)
def _no_warnings_yet() -> Iterator[None]:
    unsupported._warned.clear()
    yield
    unsupported._warned.clear()


@pytest.fixture
def fat(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder on a FAT file system, which has neither links nor permissions."""
    if shutil.which("mkfs.vfat") is None:
        pytest.skip("needs mkfs.vfat (dosfstools)")
    image, folder = tmp_path / "image", tmp_path / "fat"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.vfat", str(image)], capture_output=True, check=True)
    folder.mkdir()
    done = subprocess.run(["mount", "-o", "loop", str(image), str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"can't mount FAT here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def save_twice(folder: Path) -> None:
    with RunDirectory(folder / "run") as directory:
        checkpoints = CheckpointFolder.of_run(directory.path, "mine")
        for step in (1, 2):
            state = {"run_id": "mine", "train": {"step": step}}
            checkpoints.save(step, Checkpoint({"model": {"a": torch.ones(3)}}, state), Retention(2, best_step=1))
            directory.write_json("result.json", {"step": step})
        assert checkpoints.steps() == [1, 2]
        assert load_checkpoint(checkpoints.at(2)).state["train"]["step"] == 2


def test_a_run_is_saved_on_fat(fat: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_twice(fat)
    assert not os.path.lexists(fat / "run" / "checkpoints" / "latest")
    assert caplog.text.count("can't make this link") == 1


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES])
def test_a_run_is_saved_without_links(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def symlink(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "symlink", symlink)
    save_twice(tmp_path)
    assert caplog.text.count("can't make this link") == 1


def test_a_link_is_made_and_redirected(tmp_path: Path) -> None:
    for target in ("a", "b"):
        link_for_people(tmp_path / "link", target)
        assert os.readlink(tmp_path / "link") == target
    assert os.listdir(tmp_path) == ["link"]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
def test_a_run_is_saved_without_locks(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(descriptor: int, kind: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    save_twice(tmp_path)
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    assert not lock.is_held()
    lock.release()
    with locked_folder(tmp_path / "folder"):
        assert (tmp_path / "folder").is_dir()
    assert caplog.text.count("has no locks") == 1


def test_free_space_that_a_file_system_does_not_report_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_bytes(tmp_path) == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    assert free_bytes(Path("/proc")) is None  # it has no blocks at all
    save_twice(tmp_path)
    with pytest.raises(FileNotFoundError):
        free_bytes(tmp_path / "nothing")
