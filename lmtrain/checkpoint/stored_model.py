"""How large the model in a checkpoint is, by the header of its file: before anything of it is read."""

import math
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lmtrain.files.limited import check_plain

MODEL_FILE = "model.safetensors"


def stored_model_size(checkpoint: Path) -> tuple[int, int] | None:
    """Return how many tensors and elements are stored of a model; None if that can't be read."""
    path = checkpoint / MODEL_FILE
    try:
        check_plain(path, path.stat())
        with safe_open(path, framework="numpy") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError):
        return None
    return len(shapes), sum(map(math.prod, shapes))
