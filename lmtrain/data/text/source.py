"""Sources of text. They stream documents in the same order on every machine, from any position."""

import codecs
import io
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Generic, Protocol, Self, TypeVar

from lmtrain.data.text.document import PART_BYTES, Document, document_parts
from lmtrain.data.text.files import READ_BYTES, BufferedFile, TextScan
from lmtrain.data.text.inputs import (
    Inputs,
    Scanned,
    Stamp,
    check_unchanged,
    crlf_way_out,
    input_changes,
    open_binary,
    stamp_of,
)
from lmtrain.data.text.matching import matching_files, other_names
from lmtrain.terminal.as_text import first_few

Advance = Callable[[int], None]  # is called with the number of bytes just read


class Reader(Protocol):
    """An iterator over documents that knows its position."""

    def __iter__(self) -> "Reader": ...

    def __next__(self) -> Document: ...

    def position(self) -> Any:
        """Return a JSON value with which `read` continues at the next document or part."""


class ReaderPosition(Protocol):
    """A dataclass with the position of a reader; `file` is None before the first document."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    file: str | None


Position = TypeVar("Position", bound=ReaderPosition)


class PositionedReader(Generic[Position]):
    """A Reader whose generator `_read` keeps the position in `_at`."""

    def __init__(self, position: Position) -> None:
        self._at = position
        self._documents = self._read()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Document:
        return next(self._documents)

    def position(self) -> Any:
        return None if self._at.file is None else asdict(self._at)

    def _read(self) -> Iterator[Document]:
        raise NotImplementedError


class Source(Protocol):
    """Text that can be read several times with the same result."""

    def scan(self, advance: Advance) -> Inputs:
        """Read all text once, so that mistakes are found before hours of work.

        Raises:
            ValueError: text is missing, unreadable or invalid. The message says where, and what to do.
        """

    def text_bytes(self, inputs: Inputs) -> int | None:
        """Return the number of UTF-8 bytes that `read` yields, from a scan; None if the scan does not know it."""

    def changes(self, inputs: Inputs) -> list[str]:
        """Return the differences from an earlier scan, as texts. Reads only files with another modification time."""

    def read(self, position: Any = None) -> Reader:
        """Return a reader of the documents, from the position of an earlier reader on.

        Raises:
            ValueError: the text has changed since the scan. Reading may raise it, too.
        """


class FileSource:
    """Documents from files of UTF-8 text, in the order of `paths()`.

    A byte order mark at the start of a file is removed; newlines stay unchanged. A separator belongs to no document,
    and empty documents are left out.
    """

    separator: bytes | None = None  # None: each file is one document

    def __init__(self) -> None:
        self.stamps: dict[str, Stamp] = {}  # from the scan, or from `changes`

    def paths(self) -> dict[str, Path]:
        """Return the files by name."""
        raise NotImplementedError

    def other_names(self) -> dict[str, list[str]]:
        """Return the names that were left out because the same files have other names."""
        return {}

    def open(self, path: Path) -> BinaryIO:
        return open_binary(path)

    def scan(self, advance: Advance) -> Inputs:
        inputs: Inputs = {}
        separators = 0
        other_names = self.other_names()
        for name, path in self.paths().items():
            try:
                self.stamps[name] = size, mtime_ns = stamp_of(path)
                with self.open(path) as file:
                    scan = TextScan(name, self.separator)
                    while chunk := file.read(READ_BYTES):
                        scan.add(chunk)
                        advance(len(chunk))
            except OSError as error:
                raise ValueError(f"{name}: {error.strerror}") from error
            scan.end()
            check_unchanged(name, path, self.stamps)
            hashed: Scanned = {"sha256": scan.sha256.hexdigest(), "text_bytes": scan.text_bytes}
            inputs[name] = {"bytes": size, "mtime_ns": mtime_ns, **hashed}
            separators += scan.separators
            if more := other_names.get(name):
                inputs[name]["other_names"] = more
            if scan.crlf_lines and _is_of_newlines(self.separator):
                inputs[name]["crlf_lines"] = scan.crlf_lines
                inputs[name]["separators"] = scan.separators
        if not self.text_bytes(inputs):
            raise ValueError(f"prepare.source: no text in {first_few(inputs)}")
        if self.separator is not None and not separators:
            hint = r"""; a newline is "\n" in YAML, $'"\n"' in a shell""" if b"\\" in self.separator else ""
            if any("crlf_lines" in scanned for scanned in inputs.values()):
                hint = f"; the lines end in CRLF: {crlf_way_out(self.separator.decode())}"
            raise ValueError(
                f"prepare.source.separator={self.separator.decode()!r}: does not occur in {first_few(inputs)}; "
                f"null makes each file one document{hint}"
            )
        return inputs

    def text_bytes(self, inputs: Inputs) -> int | None:
        return sum(int(scanned["text_bytes"]) for scanned in inputs.values())

    def changes(self, inputs: Inputs) -> list[str]:
        try:
            paths = self.paths()
        except ValueError:  # no file is left
            paths = {}
        return input_changes(inputs, paths, self.stamps, self.open)

    def read(self, position: Any = None, *, part_bytes: int = PART_BYTES, read_bytes: int = READ_BYTES) -> "FileReader":
        return FileReader(self, position, part_bytes, read_bytes)


@dataclass
class FilePosition:
    """The start of document `number` of a file, of which `start` bytes are done; `size` if it comes in parts."""

    file: str | None = None
    byte: int = 0
    number: int = 1
    start: int = 0
    size: int | None = None


class FileReader(PositionedReader[FilePosition]):
    """Reads files by offset, so that it can begin anywhere without reading what comes before.

    Its documents depend neither on where it began nor on `read_bytes`.
    """

    def __init__(self, files: FileSource, position: Any, part_bytes: int, read_bytes: int) -> None:
        self.files, self.part_bytes, self.read_bytes = files, part_bytes, read_bytes
        super().__init__(FilePosition(**(position or {})))

    def _read(self) -> Iterator[Document]:
        paths = self.files.paths()
        names = list(paths)
        if self._at.file is not None:
            if self._at.file not in paths:
                raise ValueError(f"{self._at.file}: was removed since the preparation began; prepare again")
            names = names[names.index(self._at.file) :]
        for name in names:
            if name != self._at.file:
                self._at.file, self._at.byte, self._at.number = name, 0, 1
            check_unchanged(name, paths[name], self.files.stamps)
            with self.files.open(paths[name]) as file:
                try:
                    yield from self._read_file(name, BufferedFile(file, self.read_bytes))
                except UnicodeDecodeError as error:
                    raise ValueError(f"{name}: not UTF-8 text ({error.reason})") from error
            check_unchanged(name, paths[name], self.files.stamps)

    def _read_file(self, name: str, file: BufferedFile) -> Iterator[Document]:
        separator, named = self.files.separator, name
        if not self._at.byte and file.read(0, 3) == codecs.BOM_UTF8:
            self._at.byte = 3
        while self._at.byte < file.size:
            begin = self._at.byte
            if self._at.size is not None:
                end = begin + self._at.size
            else:
                end = file.size if separator is None else file.find(separator, begin)
            if separator is not None:
                named = f"{name}:{self._at.number}"
            following = min(end + len(separator or b""), file.size)
            if end - begin <= self.part_bytes:
                self._at.byte, self._at.number = following, self._at.number + 1
                if begin < end:
                    yield Document(named, file.read(begin, end).decode())
                continue
            read = file.from_byte(begin)
            for document, after in document_parts(named, end - begin, read, self._at.start, self.part_bytes):
                if after < end - begin:
                    self._at.start, self._at.size = after, end - begin
                else:
                    self._at.byte, self._at.number = following, self._at.number + 1
                    self._at.start, self._at.size = 0, None
                yield document


def _is_of_newlines(separator: bytes | None) -> bool:
    return separator is not None and separator.strip(b"\n") == b""


class TextFiles(FileSource):
    """Plain UTF-8 text files, sorted by path.

    Args:
        files: A path or glob, or a list of them. `**` matches any folders.
        separator: The text between documents, for example `<|endoftext|>` or a blank line. Documents are named
            "path:number" and counted from 1, empty ones included, so for a newline it is the line number. null makes
            each file one document, named by its path.

    Raises:
        ValueError: the separator is empty.
    """

    def __init__(self, files: str | list[str], separator: str | None = None) -> None:
        super().__init__()
        if separator == "":
            raise ValueError("prepare.source.separator='': is empty; null makes each file one document")
        self.patterns = [files] if isinstance(files, str) else files
        self.separator = None if separator is None else separator.encode()

    def paths(self) -> dict[str, Path]:
        return matching_files(self.patterns)

    def other_names(self) -> dict[str, list[str]]:
        return other_names(self.patterns)


class StandardLibrary(FileSource):
    """The source code of the running Python's standard library: real text that every machine has.

    Tests and installed packages are left out, and so are the few bytes that are not UTF-8.
    """

    EXCLUDED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"})

    def __init__(self) -> None:
        super().__init__()

    def paths(self) -> dict[str, Path]:
        root = Path(sysconfig.get_paths()["stdlib"])
        found = []
        for folder, below, files in os.walk(root):
            below[:] = [name for name in below if name not in self.EXCLUDED]
            found += [Path(folder, name).relative_to(root) for name in files if name.endswith(".py")]
        return {name.as_posix(): root / name for name in sorted(found)}

    def open(self, path: Path) -> BinaryIO:
        text = path.read_bytes().decode("utf-8", errors="ignore")
        return io.BytesIO(text.encode() if text.strip() else b"")
