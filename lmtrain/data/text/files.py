"""Checks, counts and reads the bytes of text files."""

import codecs
import hashlib
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lmtrain.machine import is_installed

READ_BYTES = 1 << 20


class TextScan:
    """Checks, hashes and counts the text of a file, chunk by chunk.

    Raises:
        ValueError: from `add` and `end`, if the file is not UTF-8.
    """

    def __init__(self, name: str, separator: bytes | None) -> None:
        self.name, self.separator = name, separator
        self.sha256 = hashlib.sha256()
        self.text_bytes = self.separators = self.crlf_lines = 0
        self._head = self._unfinished = self._tail = b""
        self._bytes = 0
        self._last = b""

    def add(self, chunk: bytes) -> None:
        self.sha256.update(chunk)
        if not self._bytes:
            self._head = chunk[:1024]
            if self._head.count(0) > len(self._head) // 4:  # UTF-16 of plain English is valid UTF-8
                raise ValueError(f"{self.name}: not UTF-8 text{_hint(self._head)}")
            self.text_bytes -= len(codecs.BOM_UTF8) * chunk.startswith(codecs.BOM_UTF8)
        data = self._unfinished + chunk
        try:
            _, used = codecs.utf_8_decode(data, "strict", False)
        except UnicodeDecodeError as error:
            raise self._not_utf8(self._bytes - len(self._unfinished) + error.start, error.reason) from error
        self._unfinished = data[used:]
        self._bytes += len(chunk)
        self.text_bytes += len(chunk)
        self.crlf_lines += (self._last + chunk).count(b"\r\n")
        self._last = chunk[-1:]
        if self.separator is not None:
            *before, rest = (self._tail + chunk).split(self.separator)
            self.separators += len(before)
            self.text_bytes -= len(self.separator) * len(before)
            self._tail = rest[max(0, len(rest) - len(self.separator) + 1) :]

    def end(self) -> None:
        if self._unfinished:
            raise self._not_utf8(self._bytes - len(self._unfinished), "it ends in the middle of a character")

    def _not_utf8(self, position: int, reason: str) -> ValueError:
        return ValueError(f"{self.name}: not UTF-8 text (byte {position:,}: {reason}){_hint(self._head)}")


def _hint(head: bytes) -> str:
    """Return the likely type of a file that is not text, and what to do."""
    for magic, kind in (
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstandard"),
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ\x00", "xz"),
    ):
        if head.startswith(magic):
            return f"; it is compressed with {kind}, which the Hugging Face source reads (path=text or path=json)"
    if head.startswith(b"PAR1"):
        return "; it is a Parquet file, which the Hugging Face source reads (path=parquet)"
    if head.startswith(b"PK\x03\x04"):
        return "; it is a zip archive: unpack it"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or _is_every_second_zero(head):
        return "; it looks like UTF-16: convert it (iconv -f utf-16 -t utf-8)"
    if b"\0" in head:
        return "; it does not look like text: leave it out"
    return "; convert it (for example iconv -f latin1 -t utf-8), or leave it out"


def _is_every_second_zero(head: bytes) -> bool:
    """Return whether most bytes at even or at odd places are zero, as in UTF-16 text in a Latin script."""
    return any(2 * part.count(0) > len(part) > 0 for part in (head[::2], head[1::2]))


def check_zstandard(name: str, path: Path) -> None:
    """Raise a ValueError if a zstandard file is cut off, which the library would not notice."""
    with path.open("rb") as file:
        if file.read(4) != b"\x28\xb5\x2f\xfd" or not is_installed("zstandard"):
            return
        file.seek(0)
        zstandard = importlib.import_module("zstandard")
        frame = None
        while chunk := file.read(1 << 16):  # a small chunk may unpack to a lot of text
            while chunk:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                frame.decompress(chunk)
                chunk, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        if frame is not None:
            raise ValueError(f"{name}: ends too early, like an incomplete copy; copy it again")


class BufferedFile:
    """Reads a file's bytes by offset, in blocks."""

    def __init__(self, file: BinaryIO, read_bytes: int) -> None:
        self.file, self.read_bytes = file, read_bytes
        self.size = file.seek(0, os.SEEK_END)
        self._base, self._data = 0, b""

    def read(self, start: int, end: int) -> bytes:
        if start < self._base or end > self._base + len(self._data):
            self._fill(start, max(end - start, self.read_bytes))
        return self._data[start - self._base : end - self._base]

    def from_byte(self, begin: int) -> Callable[[int, int], bytes]:
        return lambda start, end: self.read(begin + start, begin + end)

    def find(self, separator: bytes, start: int) -> int:
        """Return the position of the next separator, or the file's end; keeps at most a block in memory."""
        found = self._data.find(separator, start - self._base) if start >= self._base else -1
        if found < 0:
            self._fill(start, self.read_bytes)
            found = self._data.find(separator)
        if found >= 0:
            return self._base + found
        tail = self._data
        end = start + len(tail)
        while chunk := self.file.read(self.read_bytes):  # continues after the block
            tail = tail[max(0, len(tail) - len(separator) + 1) :]
            if (found := (tail + chunk).find(separator)) >= 0:
                return end - len(tail) + found
            tail = tail + chunk
            end += len(chunk)
        return end

    def _fill(self, start: int, size: int) -> None:
        self.file.seek(start)
        self._base, self._data = start, self.file.read(size)
