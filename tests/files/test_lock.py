"""Locks between real processes: one holds a lock, the others wait, and a kill frees it."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmtrain.files.lock import PAUSES_S, FileLock, locked_folder, run_lock

PACKAGE = Path(__file__).parents[2] / "lmtrain"

HOLD_FILE = """
import sys, time
from pathlib import Path
from lmtrain.files.lock import FileLock
lock = FileLock(Path(sys.argv[1]))
lock.acquire()
lock.write_owner("the other process")
print("mine", flush=True)
time.sleep(60)
"""

HOLD_FOLDER = """
import sys
from pathlib import Path
from lmtrain.files.lock import locked_folder
folder = Path(sys.argv[1])
with locked_folder(folder):
    print("mine", flush=True)
    sys.stdin.readline()
    folder.rename(folder.with_name("finished"))
"""


def start(script: str, path: Path) -> "subprocess.Popen[str]":
    """Start a process and wait until it holds its lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    return process


def test_a_lock_is_held_by_one_process_and_free_after_its_kill(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    assert not lock.is_held()
    assert not lock.path.exists()  # is_held() makes no file
    process = start(HOLD_FILE, lock.path)
    try:
        assert lock.is_held()
        assert not lock.try_acquire(PAUSES_S)
        assert lock.owner() == "the other process"
    finally:
        process.kill()
        process.communicate()
    assert not lock.is_held()
    assert lock.try_acquire()
    lock.write_owner("me")
    assert lock.owner() == "me"
    assert FileLock(lock.path).is_held()
    lock.release()
    assert not lock.is_held()


def test_a_process_that_inherited_the_descriptor_keeps_the_lock(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    assert lock.try_acquire()
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.readline()"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()]
    )
    lock.release()
    assert lock.is_held()
    child.communicate(b"\n")
    assert not lock.is_held()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_file_that_cannot_be_a_lock_is_free_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    lock = run_lock(tmp_path)
    if kind == "link":
        (tmp_path / "mine").write_text("precious")
        lock.path.symlink_to(tmp_path / "mine")
        with pytest.raises(OSError, match="symbolic link"):
            lock.acquire()
        assert (tmp_path / "mine").read_text() == "precious"
    elif kind == "pipe":
        os.mkfifo(lock.path)
        with pytest.raises(OSError, match="not a plain file"):
            lock.try_acquire()
    else:
        lock.path.mkdir()
    assert not lock.is_held()


def test_a_read_only_file_shows_whether_its_lock_is_held(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    with lock:
        lock.path.chmod(0o444)  # like the lock of another user's run
        assert lock.is_held()
    assert not lock.is_held()


def test_a_process_that_waits_for_a_folder_gets_a_new_one_if_it_was_moved(tmp_path: Path) -> None:
    folder = tmp_path / "partial"
    process = start(HOLD_FOLDER, folder)
    first = folder.stat().st_ino
    waited = []

    def let_it_go() -> None:
        waited.append(True)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()

    with locked_folder(folder, let_it_go):
        assert waited
        assert folder.stat().st_ino != first
        assert list(folder.iterdir()) == []
    assert (tmp_path / "finished").stat().st_ino == first
    process.communicate()


def test_only_these_modules_use_fcntl() -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import) and any(alias.name == "fcntl" for alias in node.names)
    }
    # The second is a script that imports nothing from lmtrain; the third asks for addresses, and locks nothing.
    assert users == {"files/lock.py", "logger/trackio_process.py", "parallel/interface.py"}
