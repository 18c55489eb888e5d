"""Calls that a file system may lack: a run goes on without what is a convenience or a precaution, and says so once."""

import contextlib
import errno
import logging
import os
import shutil
from pathlib import Path

log = logging.getLogger(__name__)

# What is answered by FAT, SMB, FUSE and network file systems.
UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY})

_warned: set[str] = set()  # calls, in this process


def warn_once(call: str, message: str) -> None:
    """Log a warning about a call that is lacking, unless there was one already."""
    if call not in _warned:
        _warned.add(call)
        log.warning("%s", message)


def free_bytes(path: Path) -> int | None:
    """Return the bytes free where a file or folder is; None if the file system does not say."""
    try:
        usage = shutil.disk_usage(path)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return None
    return usage.free if usage.total else None


def copy_mode(source: Path, target: Path) -> None:
    """Let a file be read and written by whoever may do so with another one, on a file system that has modes."""
    with contextlib.suppress(OSError):
        target.chmod(source.stat().st_mode & 0o777)


def link_for_people(link: Path, target: str) -> None:
    """Make a symbolic link, or let it point elsewhere; nothing depends on it, so that any failure is only warned of."""
    partial = link.with_name(f".tmp-{link.name}")
    try:
        partial.unlink(missing_ok=True)
        partial.symlink_to(target)
        os.replace(partial, link)
    except OSError as error:
        warn_once("symlink", f"{link}: this link to {target} can't be made here ({error.strerror}); nothing needs it")
