"""Detects links in folders that others may have made, so that lmtrain reads and writes only inside the folder."""

import os
from collections.abc import Collection, Iterable
from pathlib import Path


def refuse_links(folder: Path, names: Collection[str] | None = None, *, below: Iterable[str] = ()) -> None:
    """Check that no entry of a folder is a link; if `names` are given, check only these entries.

    In the folders `below`, given as paths relative to `folder`, only links that lead out of `folder` are refused.

    Raises:
        ValueError: there is such a link. The message names it.
    """
    for entry in _entries(folder):
        if entry.is_symlink() and (names is None or entry.name in names):
            raise ValueError(
                f"{entry.path}: a link that lmtrain did not make and would follow; replace it with a copy of "
                "its target, or remove it"
            )
    for inner in below:
        for entry in _entries(folder / inner):
            if entry.is_symlink() and not _is_below(os.path.realpath(entry.path), os.path.realpath(folder)):
                raise ValueError(
                    f"{entry.path}: a link that leads out of {folder}; replace it with a copy of its target, "
                    "or remove it"
                )


def stays_inside(path: Path, folder: Path) -> bool:
    """Return whether a path, with all links resolved, is below a folder; the path need not exist.

    The folder's direct entries may be links, for example `outputs` to a larger disk. Then the path must be below the
    target of such an entry.
    """
    absolute, base = os.path.abspath(folder / path), os.path.abspath(folder)
    real = os.path.realpath(folder / path)
    if _is_below(real, os.path.realpath(folder)):
        return True
    if ".." in path.parts or not _is_below(absolute, base):
        return False
    return _is_below(real, os.path.realpath(os.path.join(base, Path(absolute).relative_to(base).parts[0])))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_below(path: str, folder: str) -> bool:
    return path != folder and Path(path).is_relative_to(folder)
