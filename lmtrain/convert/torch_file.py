"""Reads files of `torch.save` from elsewhere, which may be damaged or made to do harm."""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


def read_torch_file(path: Path) -> object:
    """Return the content of a file of `torch.save`, on the CPU. More than tensors and plain values is not unpickled.

    Raises:
        ValueError: The file is damaged, or has more than tensors and plain values.
    """
    refuse_compressed(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # a file from elsewhere can make torch's reader fail in many ways
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(f"{path}: contains more than tensors and plain values ({found[1]}); not loaded") from error
        raise ValueError(f"{path}: not a file of torch.save, or damaged ({type(error).__name__})") from error


def refuse_compressed(path: Path) -> None:
    """Raise ValueError for a compressed archive, which could fill the memory; torch.save never writes one."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):  # the format of torch 1.5, or damage that torch finds
        return
    if unpacked > path.stat().st_size:
        raise ValueError(
            f"{path}: compressed, with {unpacked:,} bytes when unpacked; torch.save never compresses; not loaded"
        )


def refuse_shared_memory(values: Sequence[object]) -> None:
    """Raise ValueError if tensors have more elements than the file: a view can repeat a single number endlessly."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if odd := [tensor for tensor in tensors if tensor.layout != torch.strided or tensor.device.type != "cpu"]:
        raise ValueError(f"a tensor of {size_text(odd[0])} is not a plain one ({odd[0].layout}, {odd[0].device})")
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    claimed = sum(tensor.nbytes for tensor in tensors)
    if claimed > 2 * sum(stored.values()):  # at most twice: the embedding is also stored as the output layer
        raise ValueError(f"its tensors would take {claimed:,} bytes, but it contains only {sum(stored.values()):,}")


def size_text(value: object) -> str:
    """Return the shape of a tensor, or what else it is."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return " × ".join(map(str, value.shape)) or "a single number"
