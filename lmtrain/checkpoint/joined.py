"""Reads a file of a checkpoint that several processes have written: each part has some rows of its tensors.

The parts are in the format of `torch.distributed.checkpoint`, whose `HuggingFaceStorageReader` reads them too.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lmtrain.errors import BrokenCheckpointError

OFFSETS, OFFSETS_OF_TENSOR = "DCP_SHARDING_INFO", "saved_offsets"  # keys in the metadata of a part
VERSION = {"DCP_VERSION": "1.0", "format": "pt"}
PART = re.compile(r"(.+)\.shard-\d{5}-of-\d{5}\.safetensors")


def sharded_name(file: str, number: int, count: int) -> str:
    """Return the name of a part, without its suffix; parts count from 0, and their names from 1."""
    return f"{file}.shard-{number + 1:05d}-of-{count:05d}"


def split_name(name: str) -> tuple[str, bool]:
    """Return the file to which a file name belongs, and whether it is only a part of it."""
    found = PART.fullmatch(name)
    return (found[1], True) if found else (name.removesuffix(".safetensors"), False)


def first_rows_as_metadata(first_rows: Mapping[str, int], tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the metadata of a part, given the number of the first row of each tensor."""
    offsets = {
        name: {OFFSETS_OF_TENSOR: [first_rows[name], *(0 for _ in tensor.shape[1:])] if tensor.ndim else []}
        for name, tensor in tensors.items()
    }
    return {OFFSETS: json.dumps(offsets), **VERSION}


class JoinedTensors(Mapping[str, torch.Tensor]):
    """The tensors of a file in parts, by name. They are joined when they are asked for."""

    def __init__(self, pieces: Mapping[str, Sequence[tuple[int, torch.Tensor]]]) -> None:
        self._pieces = pieces  # each with the number of its first row, in ascending order

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Self:
        """Open the parts of a file.

        Raises:
            BrokenCheckpointError: rows are missing, or a part does not say which rows it has.
        """
        found: dict[str, list[tuple[int, torch.Tensor]]] = {}
        for path in paths:
            try:
                with safe_open(path, framework="pt") as file:
                    offsets = json.loads(file.metadata()[OFFSETS])
                for name, tensor in load_file(path).items():
                    first = offsets[name][OFFSETS_OF_TENSOR]
                    found.setdefault(name, []).append((int(first[0]) if first else 0, tensor))
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise BrokenCheckpointError(f"{path.name} does not say which rows it has") from error
        for name, pieces in sorted(found.items()):
            pieces.sort(key=lambda piece: piece[0])
            row = 0
            for first, tensor in pieces:
                if first != row:
                    raise BrokenCheckpointError(
                        f"rows {row} to {first - 1} of {name} are in no part of {paths[0].name}"
                    )
                row += len(tensor) if tensor.ndim else 1
        return cls(found)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensors = [tensor for _, tensor in self._pieces[name]]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    def rows(self, name: str, first: int, count: int) -> torch.Tensor:
        """Return some rows of a tensor, without joining it as a whole."""
        found = []
        for start, tensor in self._pieces[name]:
            low, high = max(first, start), min(first + count, start + len(tensor))
            if low < high:
                found.append(tensor[low - start : high - start])
        return torch.cat(found) if found else self._pieces[name][0][1][:0]

    def shape(self, name: str) -> torch.Size:
        """Return the shape of a whole tensor."""
        pieces = self._pieces[name]
        last, tensor = pieces[-1]
        return torch.Size([last + len(tensor), *tensor.shape[1:]]) if tensor.ndim else tensor.shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the number format of a tensor."""
        return self._pieces[name][0][1].dtype

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)


def shape_of(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Size:
    """Return the shape of a tensor of a checkpoint."""
    return tensors.shape(name) if isinstance(tensors, JoinedTensors) else tensors[name].shape


def dtype_of(tensors: Mapping[str, torch.Tensor], name: str) -> torch.dtype:
    """Return the number format of a tensor of a checkpoint."""
    return tensors.dtype(name) if isinstance(tensors, JoinedTensors) else tensors[name].dtype


def rows_of(tensors: Mapping[str, torch.Tensor], name: str, first: int, count: int) -> torch.Tensor:
    """Return some rows of a tensor of a checkpoint."""
    return (
        tensors.rows(name, first, count) if isinstance(tensors, JoinedTensors) else tensors[name][first : first + count]
    )
