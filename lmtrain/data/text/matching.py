"""Finds the files that globs match. A file that has several names or is reached through links is found only once."""

import fnmatch
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

Identity = tuple[int, int]  # device and inode


def matching_files(patterns: list[str], key: str = "prepare.source.files") -> dict[str, Path]:
    """Return the matching files by path, sorted. If a file has several names, one that is not a link is used.

    A name with brackets is a plain name, not a pattern, if such a file or folder exists.

    Raises:
        ValueError: no file matches.
    """
    found = [names[0] for names in _names_by_file(patterns).values()]
    if not found:
        raise ValueError(f"{key}={', '.join(patterns)}: no such file in {Path.cwd()}{_hint(patterns)}")
    return {path.as_posix(): path for path in sorted(found)}


def other_names(patterns: list[str]) -> dict[str, list[str]]:
    """Return the names that `matching_files` has left out, by the name that it uses for the same file."""
    return {
        first.as_posix(): [name.as_posix() for name in more]
        for first, *more in _names_by_file(patterns).values()
        if more
    }


def _names_by_file(patterns: list[str]) -> dict[Identity, list[Path]]:
    names: dict[Identity, list[Path]] = {}
    for path in {path for pattern in patterns for path in _expanded(Path(pattern).expanduser())}:
        if os.path.isfile(path):
            names.setdefault(_identity(path), []).append(path)
    for several in names.values():
        if len(several) > 1:
            several.sort(key=lambda path: (os.path.realpath(path) != os.path.abspath(path), path))
    return names


def _hint(patterns: list[str]) -> str:
    folders = [pattern for pattern in patterns if Path(pattern).expanduser().is_dir()]
    if folders:
        return f"; for the files in the folder, write {folders[0]}/* or {folders[0]}/**/*.txt"
    if bracketed := [pattern for pattern in patterns if "[" in pattern]:
        escaped = bracketed[0].replace("[", "[[]")
        return f"; [abc] matches one of these characters; for a bracket itself, write [[], as in {escaped}"
    return ""


def _expanded(pattern: Path) -> Iterable[Path]:
    """Return the paths that a glob matches. As in `glob.glob`, only a pattern with a leading dot matches such names."""
    parts = list(pattern.parts)
    places = [Path(parts.pop(0))] if pattern.is_absolute() else [Path()]
    if parts[-1:] == ["**"]:
        parts.append("*")
    for part in parts:
        if part == "**":
            places = list(_folders_below(places))
        else:
            places = [place for folder in places for place in _matching_entries(folder, part)]
    return places


def _matching_entries(folder: Path, part: str) -> Iterator[Path]:
    magic = any(character in part for character in "*?[")
    if not magic or ("[" in part and os.path.lexists(folder / part)):
        if os.path.lexists(folder / part):
            yield folder / part
        return
    for entry in _entries(folder):
        if fnmatch.fnmatchcase(entry.name, part) and (part.startswith(".") or not entry.name.startswith(".")):
            yield folder / entry.name


def _folders_below(tops: Iterable[Path]) -> Iterator[Path]:
    """Yield the folders and all folders below them, each once; folders that only links lead to come last."""
    seen: set[Identity] = set()
    waiting, links = list(tops)[::-1], list[Path]()
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop()
        if not os.path.isdir(folder) or _identity(folder) in seen:
            continue
        seen.add(_identity(folder))
        yield folder
        for entry in reversed(_entries(folder)):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(folder / entry.name)
            elif entry.is_symlink() and os.path.isdir(entry):  # entry.is_dir() raises for a link to itself
                links.append(folder / entry.name)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted; an empty list if it can't be read or is not a folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _identity(path: Path) -> Identity:
    status = path.stat()
    return status.st_dev, status.st_ino
