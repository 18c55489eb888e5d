"""Reads the size of the model in a checkpoint from the header of its file, without reading its tensors."""

import math
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lmtrain.files.limited import check_plain

MODEL_FILE = "model.safetensors"


def stored_model_size(checkpoint: Path) -> tuple[int, int] | None:
    """Return the number of tensors and of elements of a stored model, or None if they can't be read."""
    path = checkpoint / MODEL_FILE
    try:
        check_plain(path, path.stat())
        with safe_open(path, framework="numpy") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (the file is not a mapping)
    except (OSError, SafetensorError):
        return None
    return len(shapes), sum(map(math.prod, shapes))
