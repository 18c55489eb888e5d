"""Files are read up to a size and a depth; damaged and hostile ones are refused with a clear message."""

import contextlib
import os
import socket
from pathlib import Path

import pytest
import yaml

from lmtrain.files.limited import MAX_YAML_BYTES, MAX_YAML_DEPTH, FastSafeLoader, read_limited, read_yaml_text


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket", "link to a device"])
def test_only_a_plain_file_is_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pipe"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(tmp_path):  # a socket's path must be short
            server.bind("pipe")
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(FileNotFoundError, match=f"{path}: not a plain file"):
        read_limited(path, 10)
    with pytest.raises(FileNotFoundError):
        read_limited(tmp_path / "nothing", 10)


def test_a_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_limited(tmp_path / "file", 5) == b"12345"
    with pytest.raises(ValueError, match="file: larger than 4 bytes"):
        read_limited(tmp_path / "file", 4)


def column_by_column(line_end: str) -> str:
    """Return a list in a mapping in a list and so on, each one column further right."""
    return line_end.join(f"{' ' * (2 * level)}-{line_end}{' ' * (2 * level + 1)}a:" for level in range(40))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"-  " * 300_000, "nested more than 50 deep"),  # crashes libyaml's composer
        (("\ufeff" + "- " * 200_000).encode(), "nested more than 50 deep"),
        (b"? " * 200_000, "nested more than 50 deep"),
        (b"[" * 2000, "nested more than 50 deep"),
        (b"a: {" * 60, "nested more than 50 deep"),
        (column_by_column("\n").encode(), "nested more than 50 deep"),
        (column_by_column("\r").encode(), "nested more than 50 deep"),
        (column_by_column("\x85").encode(), "nested more than 50 deep"),
        (column_by_column("\u2028").encode(), "nested more than 50 deep"),
        (("- " * 100_000).encode("utf-16"), "not YAML"),
        (b"-\t" * 200_000, "not YAML"),
        (b"a: &a [1]\nb: *a\n", r"has an alias \(\*a\)"),
        (b"x: " + b"y" * MAX_YAML_BYTES, "larger than 1,000,000 bytes"),
    ],
)
def test_yaml_that_would_crash_a_loader_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_yaml_text(path)
    assert str(raised.value).startswith(str(path))


def test_other_yaml_is_returned_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    deepest = "".join(f"{' ' * level}a:\n" for level in range(MAX_YAML_DEPTH))
    for text in ("a: 1\n", "a:\n- b\n- [c, {d: é}]\n", "text: 'R&D [1] {2} --- - -'\n", deepest):
        path.write_text(text, encoding="utf-8")
        assert read_yaml_text(path) == text
        yaml.load(text, Loader=FastSafeLoader)
