"""Writes and reads the safetensors files of a Hugging Face folder: one, or several with an index."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lmtrain.files.durable import sync, write_atomically
from lmtrain.files.limited import read_json_limited
from lmtrain.files.unsupported import usual_permissions
from lmtrain.terminal.as_text import visible

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MOST_BYTES = 5_000_000_000  # of a file, as transformers 4 writes them
INDEX_BYTES = 64 << 20  # size limit for reading


def write_weights(folder: Path, tensors: Mapping[str, Tensor], most_bytes: int = MOST_BYTES) -> None:
    """Write tensors into files of at most `most_bytes` each, unless a single tensor is larger.

    Raises:
        OSError: The disk is full, or a file can't be written.
    """
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > most_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        _save(folder / SINGLE, shards[0])
        return
    place: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save(folder / file, shard)
        place |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": place}
    write_atomically(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder on the CPU, in their own number formats.

    Raises:
        ValueError: There are no safetensors, a file is missing or damaged, or the files and the index disagree.
        OSError: A file can't be read.
    """
    tensors: dict[str, Tensor] = {}
    for path in weights_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  # it is no mapping
                    if name in tensors:
                        raise ValueError(f"{path}: has {name}, which another file has too")
                    tensors[name] = file.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged, or not a safetensors file ({visible(str(error))})") from error
    if (folder / INDEX).is_file() and (missing := sorted(_place_of(folder).keys() - tensors.keys())):
        raise ValueError(f"{folder / INDEX}: names {missing[0]}, which no file has")
    return tensors


def weights_files(folder: Path) -> list[Path]:
    """Return the files with the weights of a folder; raise ValueError if there are none."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        pickled = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
        if pickled:
            raise ValueError(
                f"{folder}: has its weights only as a pickle ({pickled[0]}), which can run code and is not read; "
                "convert it to safetensors first"
            )
        raise ValueError(f"{folder}: has no weights ({SINGLE}, or {INDEX} with the files that it names)")
    names = sorted(set(_place_of(folder).values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(
                f"{folder / INDEX}: names {visible(name)[:80]!r}, which is no safetensors file of the folder"
            )
        if not (folder / name).is_file():
            raise ValueError(f"{folder / INDEX}: names {name}, which is missing; download it too")
    return [folder / name for name in names]


def _place_of(folder: Path) -> dict[str, str]:
    """Return the file of each tensor in the index."""
    content = read_json_limited(folder / INDEX, INDEX_BYTES)
    place = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(place, dict) or not place or not all(isinstance(each, str) for each in place.values()):
        raise ValueError(f"{folder / INDEX}: has no weight_map from tensors to files")
    return {str(name): file for name, file in place.items()}


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        with usual_permissions(path):  # otherwise, only its owner could read it
            save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path}: can't be written ({error})") from error
    sync(path)
