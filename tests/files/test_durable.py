"""Files and folders are on the disk when a function returns, as its calls of fsync show."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tokens import TINY, write_tokens

from lmtrain.checkpoint.files import Checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder, Retention
from lmtrain.files import unsupported
from lmtrain.files.durable import append_line, flush_to_disk, make_folder, sync, write_atomically
from lmtrain.run.directory import RunDirectory
from lmtrain.run.new_run import NewRun, new_run, start


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that collects each file and folder that fsync is called for, in order."""
    found: list[Path] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        found.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return found


@pytest.fixture
def no_warnings_yet() -> Iterator[None]:
    unsupported._warned.clear()
    yield
    unsupported._warned.clear()


def test_a_file_and_its_name_are_on_the_disk(tmp_path: Path, synced: list[Path]) -> None:
    write_atomically(tmp_path / "a", "words")
    assert synced == [tmp_path / ".tmp-a", tmp_path]


def test_a_folder_and_its_new_parents_are_on_the_disk(tmp_path: Path, synced: list[Path]) -> None:
    make_folder(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    synced.clear()
    make_folder(tmp_path / "a" / "b" / "c")
    assert synced == []


def test_all_new_files_and_folders_of_a_run_are_on_the_disk(
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
@pytest.mark.usefixtures("no_warnings_yet")
def test_a_file_system_without_fsync_causes_one_warning(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)  # no such file system can be mounted here
    make_folder(tmp_path / "a" / "b")
    write_atomically(tmp_path / "a" / "file", "words")
    assert (tmp_path / "a" / "file").read_text() == "words"
    assert caplog.text.count("can't confirm that files are on the disk") == 1


def test_a_disk_error_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        sync(tmp_path)
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match="Input/output error"):
        flush_to_disk(file.fileno(), tmp_path / "file")


def test_a_line_is_appended_after_one_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, "one")
    append_line(path, "two")
    assert path.read_text() == "one\ntwo\n"
    with path.open("a") as file:
        file.write("th")
    append_line(path, "four")
    assert path.read_text() == "one\ntwo\nth\nfour\n"


def test_no_line_is_appended_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="link"):
        append_line(tmp_path / "link", "one")
    assert not (tmp_path / "elsewhere").exists()
