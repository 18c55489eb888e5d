"""Links in folders that others may have made: whoever writes or reads there should stay in the folder."""

import os
from collections.abc import Collection, Iterable
from pathlib import Path


def refuse_links(folder: Path, names: Collection[str] | None = None, *, below: Iterable[str] = ()) -> None:
    """Check that no entry of a folder is a link; `names` are the only ones looked at, if they are given.

    In the folders `below`, given by their relative paths, only links that lead out of the whole folder are refused.

    Raises:
        ValueError: a link is there, which the message names.
    """
    for entry in _entries(folder):
        if entry.is_symlink() and (names is None or entry.name in names):
            raise ValueError(
                f"{entry.path}: a link, which lmtrain does not make and would write or read through; put what it leads "
                "to in its place, or remove it"
            )
    for inner in below:
        for entry in _entries(folder / inner):
            if entry.is_symlink() and not _is_below(os.path.realpath(entry.path), os.path.realpath(folder)):
                raise ValueError(
                    f"{entry.path}: a link that leads out of {folder}; put what it leads to in its place, or remove it"
                )


def stays_inside(path: Path, folder: Path) -> bool:
    """Return whether a path, with all links followed, lies below a folder, whether it is there or not.

    The folder's own entries may be links, as `outputs` to a larger disk is: then the path has to lie below such an
    entry's target.
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
