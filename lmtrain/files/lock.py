"""Locks that processes hold on files and folders. The kernel frees a lock when its process dies, for any reason.

Only this module calls flock, except `logger/trackio_process.py`, a script that imports nothing from lmtrain.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from lmtrain.files.limited import check_plain, read_limited
from lmtrain.files.unsupported import UNSUPPORTED, warn_once

# A process that checks whether a lock is held holds it itself for an instant, so one failed attempt proves nothing.
PAUSES_S = (0.0, 0.05, 0.2)
MAX_OWNER_BYTES = 10_000
# Errors from Lustre and FUSE, from NFS without its lock service, and from NFS for folders and files open for reading.
NO_LOCKS = UNSUPPORTED | {errno.ENOLCK, errno.EBADF, errno.EISDIR}


class FileLock:
    """A lock on a file, which is created if it is missing. A link with the file's name is never followed.

    The class has the methods of Optuna's journal locks. Optuna's own locks are files that remain when their process is
    killed, and the next process waits 30 s for them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock, after waiting for the process that holds it; return True."""
        descriptor = self._open()
        try:
            _flock(descriptor, fcntl.LOCK_EX, self.path)
        except BaseException:  # for example a signal
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def try_acquire(self, pauses_s: Sequence[float] = (0.0,)) -> bool:
        """Try to take the lock once after each pause; return whether this object now holds it."""
        descriptor = self._open()
        try:
            for pause_s in pauses_s:
                time.sleep(pause_s)
                if _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, self.path):
                    self._descriptor = descriptor
                    return True
            return False
        finally:
            if self._descriptor != descriptor:
                os.close(descriptor)

    def release(self) -> None:
        """Close the file. A process that has inherited its descriptor continues to hold the lock."""
        assert self._descriptor is not None
        os.close(self._descriptor)
        self._descriptor = None

    def is_held(self) -> bool:
        """Return whether a living process holds the lock; False for a missing file and for a link."""
        try:
            # A shared lock needs no write access. Without O_NONBLOCK, opening a pipe would wait.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):
                return False
            raise
        try:
            return not _flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, self.path)
        finally:
            os.close(descriptor)

    def fileno(self) -> int:
        """Return the descriptor that holds the lock, so that another process can inherit it."""
        assert self._descriptor is not None
        return self._descriptor

    def write_owner(self, text: str) -> None:
        """Replace the file's contents with a text that identifies the process that holds the lock."""
        os.ftruncate(self.fileno(), 0)
        os.pwrite(self.fileno(), text.encode(), 0)

    def owner(self) -> str:
        """Return the text that the last holder of the lock has written; empty if there is none."""
        return read_limited(self.path, MAX_OWNER_BYTES).decode(errors="replace").strip()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _open(self) -> int:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            check_plain(self.path, os.fstat(descriptor))
        except OSError:
            os.close(descriptor)
            raise
        return descriptor


def run_lock(run_dir: Path) -> FileLock:
    """Return the lock that a run's process holds on its run directory."""
    return FileLock(run_dir / ".lock")


@contextmanager
def locked_folder(folder: Path, on_waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Make the folder and hold a lock on the folder itself, without a lock file in it.

    Calls `on_waiting` before it waits for another process. The folder may be moved or removed while it is locked. A
    waiting process then makes a new folder under the same path.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            if not _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, folder):
                on_waiting()
                _flock(descriptor, fcntl.LOCK_EX, folder)
            if _is_at(descriptor, folder):
                yield
                return
            # The other process has moved or removed the folder.
        finally:
            os.close(descriptor)


def _flock(descriptor: int, kind: int, path: Path) -> bool:
    """Take a lock on an open file or folder; return False if another process holds it and `kind` says not to wait.

    On a file system without locks, this logs a warning, and every process gets every lock.
    """
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warn_once(
            "flock",
            f"{path}: this file system has no locks ({error.strerror}), so nothing keeps two processes from using one "
            "folder at the same time; start only one process",
        )
    return True


def _is_at(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False
