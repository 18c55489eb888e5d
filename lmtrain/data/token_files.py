"""Reads a split's tokens as one sequence, from one file or from many.

It reads `<split>.bin`, numbered shards (`train_000000.bin`, `fineweb_train_000001.bin`), and shards with the header of
256 int32 that llm.c and modded-nanogpt write. Files without `meta.json` or a header are uint16 unless the caller says
otherwise.
"""

import hashlib
import mmap
import os
import re
import resource
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lmtrain.data.meta import DTYPES, Meta, Tokens, read_meta
from lmtrain.data.token_type import check_is_uint16, dtype_of
from lmtrain.errors import DataError
from lmtrain.files.durable import sha256_of

HEADER_BYTES = 256 * 4
# (magic, version) → dtype; the third number is the token count. Source: dev/data/data_common.py of llm.c.
HEADERS = {(20240520, 1): "uint16", (20240801, 7): "uint32"}

FEW_FILES = 64  # up to this number, the limit of open files stays as it is
MAPPED_BYTES = 256 << 20  # larger splits release their pages regularly, because these count as the process's memory


class TokenFile(NamedTuple):
    """An open file of tokens, mapped into memory."""

    path: Path
    mapped: mmap.mmap
    offset: int  # bytes before the first token
    size: int  # bytes, when the file was opened
    tokens: Tokens


class TokenFiles:
    """The tokens of `<folder>/<split>`, mapped into memory, read-only; opening them reads almost nothing.

    `dtype` is the type of files that don't state it (None: uint16, unless they look like another type).

    Raises:
        DataError: there is no file, a file is empty, or its size does not fit its dtype, its header or `meta.json`.
            Reading also raises it for a file that has become shorter.
    """

    def __init__(self, folder: Path, split: str, dtype: str | None = None) -> None:
        self.folder, self.split = folder, split
        self.meta: Meta | None = read_meta(folder)
        paths = split_files(folder, split, self.meta)
        _allow_files(len(paths))
        self.files = [_open(path, self.meta, dtype) for path in paths]
        dtypes = {file.tokens.dtype.name for file in self.files}
        if len(dtypes) > 1:
            raise DataError(f"{folder}: the shards of {split} have different types ({', '.join(sorted(dtypes))})")
        if self.meta:
            self._check_against(self.meta)
        elif dtype is None:
            for file in self.files[:: 1 + len(self.files) // FEW_FILES]:
                if not file.offset:
                    check_is_uint16(file.path, file.mapped)
        self.dtype = self.files[0].tokens.dtype
        self.ends = np.cumsum([len(file.tokens) for file in self.files])
        self._large = sum(file.size for file in self.files) > MAPPED_BYTES

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def fingerprint(self) -> str:
        """Return the split's checksum; without a checksum, a hash of the sizes, starts and ends of the files."""
        if self.meta is not None:
            return self.meta.splits[self.split].sha256
        digest = hashlib.sha256(b"" if self.dtype.itemsize == 2 else self.dtype.name.encode())
        for file in self.files:
            end = 1 << 20
            digest.update(str(file.size).encode())
            digest.update(file.mapped[:end])
            digest.update(file.mapped[-end:])
        return digest.hexdigest()

    @property
    def file_stamps(self) -> dict[str, list[int]]:
        """Return size, mtime and ctime (ns) of each file; as long as these are the same, so are the contents.

        A copy that keeps times restores the mtime, but not the ctime. The inode is left out, because some network file
        systems change it with every mount, and then all data would be read again without need.
        """
        stats = {file.path.name: file.path.stat() for file in self.files}
        return {name: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in stats.items()}

    def check_contents(self) -> bool:
        """Read all files and compare them with their checksums; return False if there are none.

        Raises:
            DataError: a file differs from its checksum.
        """
        if self.meta is None:
            return False
        for shard in self.meta.files(self.split):
            if sha256_of(self.folder / shard.file) != shard.sha256:
                raise DataError(f"{self.folder / shard.file}: not the file that meta.json describes (SHA-256 differs)")
        return True

    def windows(self, offsets: npt.NDArray[np.int64], length: int) -> Tokens:
        """Return a copy of the `length` tokens from each offset on, (len(offsets), length)."""
        if len(self.files) == 1:
            file = self.files[0]
            _check_size(file)
            # Row i of this view is the window that starts at token i, so a single gather copies all windows.
            step, count = file.tokens.itemsize, len(file.tokens) - length + 1
            view: Tokens = np.ndarray((count, length), self.dtype, file.mapped, file.offset, (step, step))
            windows: Tokens = view[offsets]
            return windows
        windows = np.empty((len(offsets), length), self.dtype)
        for row, start in zip(windows, offsets.tolist(), strict=True):
            self._read_into(row, start)
        return windows

    def span(self, start: int, stop: int) -> Tokens:
        """Return a copy of tokens start … stop-1, or fewer at the end of the split."""
        span = np.empty(max(0, min(stop, len(self)) - start), self.dtype)
        self._read_into(span, start)
        return span

    def locate_token(self, position: int) -> tuple[Path, int]:
        """Return the file that contains a token, and the token's number in the file."""
        index = int(np.searchsorted(self.ends, position, side="right"))
        return self.files[index].path, position - int(self.ends[index] - len(self.files[index].tokens))

    def release(self) -> None:
        """Release the pages read so far; the next read finds them in the system's page cache."""
        if self._large:
            for file in self.files:
                file.mapped.madvise(mmap.MADV_DONTNEED)

    def _read_into(self, out: Tokens, start: int) -> None:
        done = 0
        index = int(np.searchsorted(self.ends, start, side="right"))
        while done < len(out):
            file = self.files[index]
            _check_size(file)
            begin = start + done - int(self.ends[index] - len(file.tokens))
            part = file.tokens[begin : begin + len(out) - done]
            out[done : done + len(part)] = part
            done, index = done + len(part), index + 1

    def _check_against(self, meta: Meta) -> None:
        if self.split not in meta.splits:
            raise DataError(f"{self.files[0].path}: meta.json does not list this split, only {', '.join(meta.splits)}")
        expected = {file.path.name: len(file.tokens) for file in self.files}
        for shard in meta.files(self.split):
            if expected[shard.file] != shard.tokens:
                raise DataError(
                    f"{self.folder / shard.file}: has {expected[shard.file]:,} tokens, but meta.json says "
                    f"{shard.tokens:,}; prepare it again"
                )


def split_files(folder: Path, split: str, meta: Meta | None) -> list[Path]:
    """Return the files of a split, in order: the files that `meta.json` lists, `<split>.bin`, or numbered shards."""
    single = folder / f"{split}.bin"
    if meta and split in meta.splits:
        paths = [folder / shard.file for shard in meta.files(split)]
    elif meta or single.is_file():
        if not meta and (more := numbered_shards(folder, split)):
            raise DataError(
                f"{folder}: has both {single.name} and shards of {split} ({more[0].name}, …); move one kind to another "
                "folder"
            )
        paths = [single]
    else:
        paths = numbered_shards(folder, split)
    missing = next((path for path in paths or [single] if not path.is_file()), None)
    if missing:
        names = ", ".join(split_names_in(folder))
        raise DataError(
            f"{missing}: no such file; {folder} has " + (f"the splits {names}" if names else "no .bin files")
        )
    return paths


def numbered_shards(folder: Path, split: str) -> list[Path]:
    """Return the shards `<split>_<number>.bin`, or `<name>_<split>_<number>.bin`, sorted by number.

    Raises:
        DataError: a number between two others is missing, or the shards have several names.
    """
    numbered = {path: _numbered(path) for path in folder.glob("*.bin")}
    own = [path for path, found in numbered.items() if found and found[0] == split]
    named = [path for path, found in numbered.items() if found and found[0].endswith(f"_{split}")]
    found = {path: numbered[path] or ("", 0) for path in own or named}
    if len(names := {name for name, _ in found.values()}) > 1:
        raise DataError(
            f"{folder}: has shards of several names for {split} ({', '.join(sorted(names))}); move each to its own "
            "folder"
        )
    numbers = sorted(number for _, number in found.values())
    gaps = [str(number + 1) for number, following in pairwise(numbers) if following > number + 1]
    if gaps:
        raise DataError(f"{folder}: the shards of {split} go up to number {numbers[-1]}, but without {', '.join(gaps)}")
    return sorted(found, key=lambda path: found[path][1])


def split_names_in(folder: Path) -> list[str]:
    """Return the names of the splits in a folder."""
    names = {found[0] if (found := _numbered(path)) else path.stem for path in folder.glob("*.bin")}
    return sorted(names)


def _numbered(path: Path) -> tuple[str, int] | None:
    match = re.fullmatch(r"(.+)_(\d+)", path.stem)
    return (match[1], int(match[2])) if match else None


def _open(path: Path, meta: Meta | None, stated: str | None) -> TokenFile:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        offset, dtype = 0, DTYPES[meta.dtype] if meta else dtype_of(stated or "uint16")
        head = file.read(HEADER_BYTES)
        if not meta and len(head) == HEADER_BYTES:
            magic, version, count = np.frombuffer(head, "<i4")[:3].tolist()
            if magic in {known for known, _ in HEADERS} and (magic, version) not in HEADERS:
                raise DataError(f"{path}: has version {version} of llm.c's header, which lmtrain can't read")
            if written_as := HEADERS.get((magic, version)):
                offset, dtype = HEADER_BYTES, DTYPES[written_as]
                if size != offset + count * dtype.itemsize:
                    raise DataError(f"{path}: its header says {count:,} tokens, but {size - offset:,} bytes follow")
        if size <= offset or (size - offset) % dtype.itemsize:
            raise DataError(f"{path}: {size - offset:,} bytes are not a whole, positive number of {dtype.name} tokens")
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    tokens: Tokens = np.frombuffer(mapped, dtype, offset=offset)
    return TokenFile(path, mapped, offset, size, tokens)


def _allow_files(count: int) -> None:
    """Raise the limit of open files. Each mapped shard keeps a descriptor, and the usual soft limit is 1,024."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft + 2 * count if most == resource.RLIM_INFINITY else min(most, soft + 2 * count)
    if count > FEW_FILES and soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _check_size(file: TokenFile) -> None:
    """Raise DataError if a file became shorter. Reading mapped memory beyond its end would kill the process."""
    size = file.mapped.size()
    if size < file.size:
        raise DataError(f"{file.path}: became shorter while it was read, from {file.size:,} to {size:,} bytes")
