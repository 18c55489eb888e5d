"""What is on the disk when a function returns, by the calls that wait for it."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tokens import TINY, write_tokens

from lmtrain.checkpoint.folder import Checkpoint, CheckpointFolder, Retention
from lmtrain.files import unsupported
from lmtrain.files.durable import flush_to_disk, make_folder, sync, write_atomically
from lmtrain.run.directory import RunDirectory
from lmtrain.run.new_run import NewRun, new_run, start


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files and folders that were waited for, in that order."""
    found: list[Path] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        found.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return found


@pytest.fixture
def nothing_was_warned_of() -> Iterator[None]:
    unsupported._warned.clear()
    yield
    unsupported._warned.clear()


def test_a_file_and_its_name_are_on_the_disk(tmp_path: Path, synced: list[Path]) -> None:
    write_atomically(tmp_path / "a", "words")
    assert synced == [tmp_path / ".tmp-a", tmp_path]


def test_a_folder_and_all_new_ones_above_it_are_on_the_disk(tmp_path: Path, synced: list[Path]) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    synced.clear()
    make_folder(tmp_path / "a" / "b" / "c")
    assert synced == []


def test_all_that_is_new_of_a_run_is_on_the_disk(
    tmp_path: Path, synced: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tokens(tmp_path / "tokens")
    monkeypatch.chdir(tmp_path)

    def save(run: NewRun) -> int:
        with RunDirectory(run.directory) as directory:
            directory.write_config("name: x", run.hydra_files)
        CheckpointFolder.of_run(run.directory, "mine").save(1, Checkpoint({}), Retention(1))
        return 0

    assert start(new_run([*TINY, "data.path=tokens", "hydra.run.dir=new/too/run"]), save) == 0
    run = tmp_path / "new" / "too" / "run"
    for folder in (run, run / ".hydra", run / "checkpoints", run / "checkpoints" / "step-00000001"):
        assert folder.is_dir()
        assert folder.parent in synced, folder
    assert {tmp_path, tmp_path / "new"} <= set(synced)
    for name in ("config.yaml", ".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml"):
        assert (run / name).with_name(f".tmp-{Path(name).name}") in synced


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
@pytest.mark.usefixtures("nothing_was_warned_of")
def test_a_file_system_that_cannot_wait_is_warned_of_once(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)  # as no such file system can be mounted here
    make_folder(tmp_path / "a" / "b")
    write_atomically(tmp_path / "a" / "file", "words")
    assert (tmp_path / "a" / "file").read_text() == "words"
    assert caplog.text.count("can't say when files are on the disk") == 1


def test_a_disk_that_refuses_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        sync(tmp_path)
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match="Input/output error"):
        flush_to_disk(file.fileno(), tmp_path / "file")
