"""The number type of token files that don't say it: the types that can be stated, and what gives away a wrong one."""

import mmap
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lmtrain.data.meta import Tokens
from lmtrain.errors import DataError

TokenType = Literal["uint8", "uint16", "uint32", "uint64", "int16", "int32", "int64"]

BLOCK_BYTES = 1 << 15  # looked at, of the file's start, middle and end each
FEWEST_BYTES = 256  # in fewer, no pattern is certain
MOST_IDS = 1 << 20  # larger than any vocabulary
FEWEST_IDS = 8  # that differ, as a file of zeros fits every type
NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK\x03\x04"  # .npz, and what torch.save writes

CONVERTED = {  # types that can be noticed, but not read, as numpy spells them
    "big-endian int64": ">i8",
    "float64": "<f8",
    "big-endian uint32": ">u4",
    "float32": "<f4",
    "big-endian uint16": ">u2",
}


def dtype_of(name: str) -> np.dtype[Any]:
    """Return the little-endian type of that name. Signed ones are read as unsigned, so a negative id is too large."""
    return np.dtype(name if name.startswith("u") else f"u{name}").newbyteorder("<")


def check_is_uint16(path: Path, contents: mmap.mmap) -> None:
    """Check that a file without a header can be uint16 tokens; reads only a little of it.

    Raises:
        DataError: it is certainly of another type, which the message names.
    """
    if contents[:6] == NPY_MAGIC or contents[:4] == ZIP_MAGIC:
        raise DataError(f"{path}: is a file of numpy or torch, not bare tokens; write them with ndarray.tofile")
    found = likely_type(_sample(contents))
    if found == "uint16":
        return
    if found in CONVERTED:
        way_out = f"write it anew: np.fromfile({path.name!r}, {CONVERTED[found]!r}).astype('<u2').tofile(…)"
    else:
        way_out = f"read it as that with data.dtype={found} (of inspect: --dtype {found})"
        way_out += ", or prepare the text it is" if found == "uint8" else ""
    raise DataError(
        f"{path}: looks like {found}, not uint16, which bare files are; {way_out}. If it is uint16 all the same: "
        "data.dtype=uint16"
    )


def _sample(contents: mmap.mmap) -> bytes:
    """Return the start, the middle and the end of a file, each from a place where a number of any width begins."""
    if len(contents) <= 3 * BLOCK_BYTES:
        return contents[:]
    middle, end = ((place - BLOCK_BYTES) // 8 * 8 for place in (len(contents) // 2, len(contents)))
    return b"".join(contents[start : start + BLOCK_BYTES] for start in (0, middle, end))


def likely_type(data: bytes) -> str:
    """Return the type that these bytes are of: uint16, unless there is no doubt that it is another.

    An id takes fewer bytes than its number has, so wide types show as bytes that are always zero. In the low byte of
    ids most values occur, in the higher ones fewer: that shows the byte order. Bytes of uint8 tokens are all alike.
    """
    if len(data) < FEWEST_BYTES:
        return "uint16"
    data = data[: len(data) // 8 * 8]
    for name, dtype in (("int64", "<u8"), ("big-endian int64", ">u8"), ("uint32", "<u4"), ("big-endian uint32", ">u4")):
        if _are_wide_ids(np.frombuffer(data, dtype)):
            return name
    for name in ("float64", "float32"):
        if _are_whole_floats(np.frombuffer(data, CONVERTED[name])):
            return name
    planes = np.frombuffer(data, np.uint8).reshape(-1, 2).T
    if _are_big_endian(*planes):
        return "big-endian uint16"
    return "uint8" if _are_alike(*planes) else "uint16"


def _are_wide_ids(numbers: Tokens) -> bool:
    """Return whether these can be ids of one vocabulary; as uint16, they have zeros at every second place."""
    if numbers.max() >= MOST_IDS:
        return False
    ids = numbers.astype(np.int64)
    if len(np.unique(ids)) < FEWEST_IDS:
        return False
    if numbers.dtype.byteorder == ">" and len(np.unique(ids & 0xFF)) < len(np.unique(ids >> 8 & 0xFF)):
        return False  # the first of two uint16 is always zero, and the second one is little-endian
    small = ids[ids < 1 << 16]
    if numbers.itemsize == 8 or len(small) == len(ids):
        return True
    # Of a vocabulary that is larger than 65,536, ids right below that occur. Two uint16, the second of them small,
    # look the same, but the first is below the size of a vocabulary.
    return 4 * len(small) > len(ids) and bool(small.max() >= 0xF000)


def _are_whole_floats(numbers: npt.NDArray[Any]) -> bool:
    if not np.isfinite(numbers).all() or not ((numbers >= 0) & (numbers < MOST_IDS)).all():
        return False
    return bool((numbers == np.floor(numbers)).all()) and len(np.unique(numbers)) >= FEWEST_IDS


def _are_big_endian(first: Tokens, second: Tokens) -> bool:
    """Return whether the second byte of the numbers is the one with many values."""
    values, more_values = len(np.unique(first)), len(np.unique(second))
    return more_values >= 32 and more_values > 1.25 * values and bool(first.max() < second.max())


def _are_alike(first: Tokens, second: Tokens) -> bool:
    """Return whether both bytes of the numbers have the same frequencies, up to chance, and those are of a language."""
    counts = np.array([np.bincount(plane, minlength=256) for plane in (first, second)])
    shares = counts.sum(axis=0) / counts.sum()
    seen = shares[shares > 0]
    bits = float(-seen @ np.log2(seen))
    by_chance = float(np.sqrt(shares / (np.pi * len(first))).sum())  # half of the sum of |difference| to be expected
    difference = float(np.abs(counts[0] - counts[1]).sum()) / (2 * len(first))
    return 2 <= bits <= 7 and difference < min(0.1, 2 * by_chance)
