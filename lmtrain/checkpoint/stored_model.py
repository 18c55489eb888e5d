"""Reads the size of the model in a checkpoint from the headers of its files, without reading its tensors."""

import math
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lmtrain.checkpoint.files import MODEL
from lmtrain.checkpoint.joined import split_name
from lmtrain.files.limited import check_plain


def stored_model_size(checkpoint: Path) -> tuple[int, int] | None:
    """Return the number of tensors and of elements of a stored model, or None if they can't be read."""
    names: set[str] = set()
    elements = 0
    try:
        for path in checkpoint.glob(f"{MODEL}.*"):
            if split_name(path.name)[0] != MODEL:
                continue
            check_plain(path, path.stat())
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 (the file is not a mapping)
                    names.add(name)
                    elements += math.prod(file.get_slice(name).get_shape())
    except (OSError, SafetensorError):
        return None
    return (len(names), elements) if names else None
