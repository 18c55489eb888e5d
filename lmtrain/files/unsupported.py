"""Wraps calls that a file system may lack. A run continues without a convenience or a precaution, and warns once."""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

# Errors from FAT, SMB, FUSE and network file systems for calls that they lack.
UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY})

_warned: set[str] = set()  # calls that this process has warned about


def warn_once(call: str, message: str) -> None:
    """Log a warning about a missing call, once per call and process."""
    if call not in _warned:
        _warned.add(call)
        log.warning("%s", message)


def free_bytes(path: Path) -> int | None:
    """Return the free bytes on the disk of a file or folder; None if the file system does not report them."""
    try:
        usage = shutil.disk_usage(path)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return None
    return usage.free if usage.total else None


@contextlib.contextmanager
def usual_permissions(path: Path) -> Iterator[None]:
    """Give a file that the block writes the permissions of a new file, if the file system has permissions."""
    path.touch()
    mode = path.stat().st_mode & 0o777
    yield
    with contextlib.suppress(OSError):
        path.chmod(mode)


def link_for_people(link: Path, target: str) -> None:
    """Make or redirect a symbolic link. Nothing depends on it, so a failure only causes a warning."""
    partial = link.with_name(f".tmp-{link.name}")
    try:
        partial.unlink(missing_ok=True)
        partial.symlink_to(target)
        os.replace(partial, link)
    except OSError as error:
        warn_once(
            "symlink",
            f"{link}: can't make this link to {target} here ({error.strerror}); lmtrain works without it",
        )
