"""Records the files that a folder was prepared from (`inputs.json`), and finds out whether they have changed since."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lmtrain.files.durable import write_atomically
from lmtrain.files.limited import read_json_limited
from lmtrain.terminal.as_text import first_few
from lmtrain.terminal.units import counted

INPUTS_FILE = "inputs.json"  # beside meta.json
MAX_INPUTS_BYTES = 256 << 20  # enough for a million files

Scanned = dict[str, Any]  # the record of one file; JSON
Inputs = dict[str, Scanned]  # the records of all files, by name; JSON
Stamp = tuple[int, int]  # size and modification time (ns), which show a change without reading the file


def stamp_of(path: Path) -> Stamp:
    """Return the file's present stamp."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def check_unchanged(name: str, path: Path, stamps: dict[str, Stamp]) -> None:
    """Raise a ValueError if the file is gone or its stamp differs from `stamps`; add a new file to `stamps`."""
    try:
        now = stamp_of(path)
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}") from error
    if stamps.setdefault(name, now) != now:
        raise ValueError(f"{name}: has changed since the preparation began; prepare again")


def open_binary(path: Path) -> BinaryIO:
    """Open a file to read its bytes."""
    return path.open("rb")


def input_changes(
    inputs: Mapping[str, Scanned],
    paths: Mapping[str, Path],
    stamps: dict[str, Stamp],
    open_file: Callable[[Path], BinaryIO] = open_binary,
) -> list[str]:
    """Return the differences between files and their earlier scan, as texts; add unchanged files to `stamps`."""
    changed = []
    for name in sorted(inputs.keys() | paths.keys()):
        if name not in inputs:
            changed.append(f"{name}: new")
            continue
        then = inputs[name]
        try:
            now = stamp_of(paths[name])
            if now[0] != then["bytes"]:
                changed.append(f"{name}: {then['bytes']:,} → {now[0]:,} bytes")
            elif now[1] != then["mtime_ns"] and input_sha256(paths[name], open_file) != then["sha256"]:
                changed.append(f"{name}: contents changed")
            else:
                stamps[name] = now
        except (KeyError, FileNotFoundError):
            changed.append(f"{name}: gone")
        except OSError as error:
            changed.append(f"{name}: {error.strerror}")
    return changed


def input_sha256(path: Path, open_file: Callable[[Path], BinaryIO] = open_binary) -> str:
    """Return the SHA-256 of the bytes that `open_file` gives for the file."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # BinaryIO hides readinto


def write_inputs(folder: Path, inputs: Inputs) -> None:
    """Write the records of the files that a folder was prepared from."""
    write_atomically(folder / INPUTS_FILE, json.dumps(inputs, indent=1) + "\n")


def read_inputs(folder: Path) -> Inputs | None:
    """Return the records of the files that a folder was prepared from; None if it has no valid ones."""
    try:
        inputs = read_json_limited(folder / INPUTS_FILE, MAX_INPUTS_BYTES)
    except (OSError, ValueError):
        return None
    sound = isinstance(inputs, dict) and all(isinstance(then, dict) for then in inputs.values())
    return inputs if sound else None


def remarks_on(inputs: Inputs) -> list[str]:
    """Return a line for each finding of a scan that may surprise the user."""
    remarks = []
    names = [name for scanned in inputs.values() for name in scanned.get("other_names", ())]
    if names:
        remarks.append(f"{first_few(names)}: left out, because the same files are read under other names")
    crlf = {name: scanned for name, scanned in inputs.items() if scanned.get("crlf_lines")}
    if whole := [name for name, scanned in crlf.items() if not scanned["separators"]]:
        remarks.append(f"{first_few(whole)}: is one document, because its lines end in CRLF; {crlf_way_out()}")
    if cut := [name for name, scanned in crlf.items() if scanned["separators"]]:
        remarks.append(
            f"{first_few(cut)}: has lines that end in CRLF, and the separator removes only the LF; {crlf_way_out()}"
        )
    if missing := {name: scanned["missing_rows"] for name, scanned in inputs.items() if scanned.get("missing_rows")}:
        rows = sum(missing.values())
        remarks.append(f"skipped {counted(rows, 'row')} without the field (in {first_few(missing)})")
    return remarks


def crlf_way_out(separator: str | None = None) -> str:
    """Return what to do about lines that end in CRLF; if there is a separator, suggest one with CRLF."""
    convert = r"remove the \r (sed -i 's/\r$//' FILE)"
    if separator is None:
        return convert
    crlf = separator.replace("\n", r"\r\n")
    return f"""give prepare.source.separator=$'"{crlf}"' (in a shell), or {convert}"""


def changed_inputs(folder: Path) -> str:
    """Return the changes in the files that a folder was prepared from, as a text; "" if there are none.

    A missing file does not count, because its text is no longer needed.
    """
    inputs = {name: then for name, then in (read_inputs(folder) or {}).items() if Path(name).is_file()}
    return first_few(input_changes(inputs, {name: Path(name) for name in inputs}, {}))
