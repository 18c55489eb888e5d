"""The files of a checkpoint: tensors as safetensors, other values as JSON, and a manifest with sizes and hashes.

No pickle is read. Processes that share a model write a file each, with some rows of its tensors.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lmtrain.checkpoint.joined import JoinedTensors, first_rows_as_metadata, sharded_name, split_name
from lmtrain.errors import BrokenCheckpointError, NonFiniteStateError
from lmtrain.files.durable import sha256_of, sync
from lmtrain.files.limited import read_limited
from lmtrain.files.unsupported import usual_permissions

MANIFEST, STATE = "MANIFEST.json", "state.json"
MODEL = "model"  # the file with the weights, without its suffix
MANIFEST_BYTES, STATE_BYTES = 1 << 20, 64 << 20  # size limits for reading, far above the real sizes
FILE_NAME = re.compile(r"\w[\w.-]{0,254}", re.ASCII)

Entries = dict[str, dict[str, Any]]  # of a manifest: the size and the hash of each file


@dataclass(frozen=True)
class Checkpoint:
    """Holds the state of a run: named tensors per file (`model`, `optimizer`, `rng-0`), and plain values for JSON.

    `state["run_id"]` is the run that saved it. `unchecked` names the tensors, as `<file>/<name>`, that may contain
    numbers that are not finite, for example a mask in a buffer.

    A process that shares a model with others holds its own part. `first_rows` has the number of the first row of each
    tensor, as `<file>/<name>`, of which it has only some. `parts` has the number of its part of a file, and
    how many there are.
    """

    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    state: Mapping[str, Any] = field(default_factory=dict)
    unchecked: frozenset[str] = frozenset()
    first_rows: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def write_files(folder: Path, checkpoint: Checkpoint, *, with_state: bool = True) -> Entries:
    """Write the files of a checkpoint into a folder, flush them to the disk, and return their manifest entries."""
    files = []
    if with_state:
        files.append(folder / STATE)
        files[0].write_text(json.dumps(checkpoint.state, indent=2) + "\n", encoding="utf-8")
    for name, tensors in checkpoint.tensors.items():
        first_rows = {key: checkpoint.first_rows.get(f"{name}/{key}", 0) for key in tensors}
        metadata = None
        if name in checkpoint.parts:
            name, metadata = sharded_name(name, *checkpoint.parts[name]), first_rows_as_metadata(first_rows, tensors)
        files.append(folder / f"{name}.safetensors")
        with usual_permissions(files[-1]):  # otherwise, only its owner could read it
            save_file(_storable(tensors), files[-1], metadata)
    return {file.name: {"size": file.stat().st_size, "sha256": _sync_and_hash(file)} for file in sorted(files)}


def write_manifest(folder: Path, entries: Entries) -> None:
    """Write the manifest of a checkpoint whose files are on the disk."""
    (folder / MANIFEST).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    sync(folder / MANIFEST)
    sync(folder)


def verify_checkpoint(path: Path, *, compare_hashes: bool = True) -> None:
    """Check that every file in the manifest exists and has the right size and, if wanted, the right hash.

    Raises:
        BrokenCheckpointError: a file is missing or differs from the manifest, or the manifest itself is damaged.
        OSError: a file can't be read now: no permission, too many open files, a disk that does not answer.
    """
    manifest = read_checkpoint_json(path / MANIFEST, MANIFEST_BYTES)
    if STATE not in manifest:
        raise BrokenCheckpointError(f"{MANIFEST} does not name {STATE}")
    for name, entry in manifest.items():
        if not FILE_NAME.fullmatch(name):
            raise BrokenCheckpointError(f"{MANIFEST} names {name[:40]!r}, which is not inside the checkpoint")
        if not isinstance(entry, dict) or not {"size", "sha256"} <= entry.keys():
            raise BrokenCheckpointError(f"{MANIFEST} has no size and SHA-256 for {name!r}")
        file = path / name
        if not file.is_file() or file.is_symlink():
            raise BrokenCheckpointError(f"{name!r} is missing")
        if (size := file.stat().st_size) != entry["size"]:
            raise BrokenCheckpointError(f"{name} has {size:,} bytes, but {entry['size']} were written")
        if compare_hashes and sha256_of(file) != entry["sha256"]:
            raise BrokenCheckpointError(f"{name} does not have the SHA-256 in {MANIFEST}")


def load_checkpoint(path: Path, *, compare_hashes: bool = True) -> Checkpoint:
    """Verify and read one checkpoint folder, with tensors on the CPU; see `verify_checkpoint`.

    Raises:
        BrokenCheckpointError: the verification failed, or a file has an unexpected format.
        OSError, MemoryError, RuntimeError: the checkpoint can't be read now, though it may be intact.
    """
    verify_checkpoint(path, compare_hashes=compare_hashes)
    return Checkpoint(open_tensors(path), read_checkpoint_json(path / STATE, STATE_BYTES))


def open_tensors(path: Path) -> dict[str, Mapping[str, torch.Tensor]]:
    """Return the tensors of a verified checkpoint by file and name, whose memory is that of the files.

    Raises:
        BrokenCheckpointError: a file has an unexpected format.
    """
    tensors: dict[str, Mapping[str, torch.Tensor]] = {}
    parts: dict[str, list[Path]] = {}
    try:
        for name in read_checkpoint_json(path / MANIFEST, MANIFEST_BYTES):
            file, is_part = split_name(name)
            if is_part:
                parts.setdefault(file, []).append(path / name)
            elif name.endswith(".safetensors"):
                tensors[file] = load_file(path / name)
        return tensors | {file: JoinedTensors.of(paths) for file, paths in parts.items()}
    except SafetensorError as error:  # the hash was right, so a bug or another program wrote the file
        raise BrokenCheckpointError(f"SafetensorError: {error}") from error


def read_checkpoint_json(path: Path, limit: int) -> dict[str, Any]:
    """Return the JSON object in a file; raise BrokenCheckpointError if there is no file or no object."""
    try:
        content = json.loads(read_limited(path, limit))
    except FileNotFoundError:
        raise BrokenCheckpointError(f"{path.name} is missing") from None
    except (NotADirectoryError, IsADirectoryError, ValueError, RecursionError) as error:
        raise BrokenCheckpointError(f"{path.name}: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise BrokenCheckpointError(f"{path.name}: not a JSON object")
    return content


def check_finite(checkpoint: Checkpoint) -> None:
    for file, tensors in checkpoint.tensors.items():
        for name, tensor in tensors.items():
            if f"{file}/{name}" in checkpoint.unchecked or not tensor.is_floating_point() or not tensor.numel():
                continue
            # One pass without a copy. If there is a NaN, both results are NaN.
            least, greatest = tensor.aminmax()
            if not (least.isfinite() and greatest.isfinite()):
                raise NonFiniteStateError(f"{file}/{name} has numbers that are not finite, so no checkpoint is saved")


def _storable(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors on the CPU, each with separate memory, since safetensors refuses tensors that share it."""
    stored: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if tensor.numel() and memory in seen else tensor
        seen.add(memory)
    return stored


def _sync_and_hash(path: Path) -> str:
    sync(path)
    return sha256_of(path)
