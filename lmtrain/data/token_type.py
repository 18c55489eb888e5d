"""The number type of token files that don't state it: the types to choose from, and a check that finds a wrong type."""

import mmap
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lmtrain.data.meta import Tokens
from lmtrain.errors import DataError

TokenType = Literal["uint8", "uint16", "uint32", "uint64", "int16", "int32", "int64"]

BLOCK_BYTES = 1 << 15  # sampled at each of the file's start, middle and end
FEWEST_BYTES = 256  # a shorter sample shows no reliable pattern
MOST_IDS = 1 << 20  # larger than any vocabulary
FEWEST_IDS = 8  # distinct ids; a file of zeros would fit every type
NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK\x03\x04"  # .npz files, and the files that torch.save writes

CONVERTED = {  # types that can be recognised but not read, with numpy's names
    "big-endian int64": ">i8",
    "float64": "<f8",
    "big-endian uint32": ">u4",
    "float32": "<f4",
    "big-endian uint16": ">u2",
}


def dtype_of(name: str) -> np.dtype[Any]:
    """Return the little-endian dtype of that name. Signed types are read as unsigned, so negative ids are too large."""
    return np.dtype(name if name.startswith("u") else f"u{name}").newbyteorder("<")


def check_is_uint16(path: Path, contents: mmap.mmap) -> None:
    """Check that a file without a header can be uint16 tokens, from a small sample of it.

    Raises:
        DataError: the file is certainly of another type. The message names the type.
    """
    if contents[:6] == NPY_MAGIC or contents[:4] == ZIP_MAGIC:
        raise DataError(f"{path}: is a file of numpy or torch, not bare tokens; write the tokens with ndarray.tofile")
    found = likely_type(_sample(contents))
    if found == "uint16":
        return
    if found in CONVERTED:
        way_out = f"convert it with np.fromfile({path.name!r}, {CONVERTED[found]!r}).astype('<u2').tofile(…)"
    else:
        way_out = f"read it with data.dtype={found} (lmtrain inspect: --dtype {found})"
        way_out += "; if it is text, prepare it first" if found == "uint8" else ""
    raise DataError(
        f"{path}: looks like {found}, not uint16, the type of files without meta.json or header; {way_out}. If it "
        "really is uint16, set data.dtype=uint16"
    )


def _sample(contents: mmap.mmap) -> bytes:
    """Return the start, middle and end of a file, cut at multiples of 8 bytes so that no number is cut in two."""
    if len(contents) <= 3 * BLOCK_BYTES:
        return contents[:]
    middle, end = ((place - BLOCK_BYTES) // 8 * 8 for place in (len(contents) // 2, len(contents)))
    return b"".join(contents[start : start + BLOCK_BYTES] for start in (0, middle, end))


def likely_type(data: bytes) -> str:
    """Return the name of the bytes' type: uint16, unless it is certainly another.

    Ids need fewer bytes than a wide type has, so a wide type has bytes that are always zero. The low byte of an id has
    more different values than the high byte, which shows the byte order. In uint8 tokens, all bytes have the same
    distribution.
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
    """Return whether the numbers can be ids of one vocabulary. As uint16, every second number would be zero."""
    if numbers.max() >= MOST_IDS:
        return False
    ids = numbers.astype(np.int64)
    if len(np.unique(ids)) < FEWEST_IDS:
        return False
    if numbers.dtype.byteorder == ">" and len(np.unique(ids & 0xFF)) < len(np.unique(ids >> 8 & 0xFF)):
        return False  # pairs of little-endian uint16 of which the first is always zero
    small = ids[ids < 1 << 16]
    if numbers.itemsize == 8 or len(small) == len(ids):
        return True
    # Ids of a vocabulary of more than 65,536 entries include some right below 65,536. Pairs of uint16 with a small
    # second number look similar, but their first number stays below the size of a smaller vocabulary.
    return 4 * len(small) > len(ids) and bool(small.max() >= 0xF000)


def _are_whole_floats(numbers: npt.NDArray[Any]) -> bool:
    if not np.isfinite(numbers).all() or not ((numbers >= 0) & (numbers < MOST_IDS)).all():
        return False
    return bool((numbers == np.floor(numbers)).all()) and len(np.unique(numbers)) >= FEWEST_IDS


def _are_big_endian(first: Tokens, second: Tokens) -> bool:
    """Return whether the second byte of the numbers has more different values than the first."""
    values, more_values = len(np.unique(first)), len(np.unique(second))
    return more_values >= 32 and more_values > 1.25 * values and bool(first.max() < second.max())


def _are_alike(first: Tokens, second: Tokens) -> bool:
    """Return whether both bytes of the numbers have the same distribution, up to chance, and look like text."""
    counts = np.array([np.bincount(plane, minlength=256) for plane in (first, second)])
    shares = counts.sum(axis=0) / counts.sum()
    seen = shares[shares > 0]
    bits = float(-seen @ np.log2(seen))
    by_chance = float(np.sqrt(shares / (np.pi * len(first))).sum())  # expected half sum of |difference|
    difference = float(np.abs(counts[0] - counts[1]).sum()) / (2 * len(first))
    return 2 <= bits <= 7 and difference < min(0.1, 2 * by_chance)
