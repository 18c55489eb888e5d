"""Reads a Hugging Face folder: config, weights and tokenizer of a Llama, Mistral, Qwen3 or GPT-2."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmtrain.convert.hugging_face.export import CONFIG, CONFIG_BYTES, names_of
from lmtrain.convert.hugging_face.imported_config import imported_overrides
from lmtrain.convert.hugging_face.tensor_names import BUFFERS, TensorNames
from lmtrain.convert.hugging_face.weights_files import read_weights, weights_files
from lmtrain.convert.imported_model import ImportedModel, check_finite, check_formats
from lmtrain.convert.tokenizer_check import refuse_more_ids
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE, StoredTokenizer, load_tokenizer
from lmtrain.files.durable import sha256_of
from lmtrain.files.limited import read_json_limited
from lmtrain.terminal.as_text import first_few


def read_hugging_face_folder(folder: Path) -> ImportedModel:
    """Read a folder that transformers has saved or `export --to hf` has written.

    Raises:
        ValueError: The folder has another architecture, or its weights or tokenizer are missing, damaged or not those
            of the config.
        OSError: A file can't be read.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: not a Hugging Face folder (no {CONFIG})")
    config = read_json_limited(folder / CONFIG, CONFIG_BYTES)
    try:
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
        settings = imported_overrides(config)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    names = names_of(config)
    try:
        weights = imported_weights(read_weights(folder), names, tied=bool(settings["model.tie_embeddings"]))
        _check_sizes(settings, weights, names)
    except ValueError as error:
        named = "" if str(folder) in str(error) else f"{folder}: "
        raise ValueError(f"{named}{error}") from error
    tokenizer = _tokenizer(folder, int(str(settings["model.vocab_size"])))
    record = {
        "folder": str(folder.resolve()),
        "sha256": {path.name: sha256_of(path) for path in [folder / CONFIG, *weights_files(folder)]},
        "config": config,
    }
    return ImportedModel(settings, weights, names.theirs, tokenizer, record)


def imported_weights(tensors: Mapping[str, Tensor], names: TensorNames, *, tied: bool) -> dict[str, Tensor]:
    """Return the tensors under lmtrain's names and in its directions.

    Raises:
        ValueError: A tensor has no place in the model, or the output layer is not the embedding, as it should be.
    """
    prefix = f"{names.prefix.partition('.')[0]}."
    if not any(name.startswith(prefix) for name in tensors):  # saved without the output layer, as the first GPT-2
        tensors = {name if name.startswith("lm_head.") else f"{prefix}{name}": value for name, value in tensors.items()}
    tensors = {name: value for name, value in tensors.items() if not BUFFERS.fullmatch(name)}
    if unknown := [name for name in tensors if not names.ours(name)]:
        raise ValueError(f"the weights do not fit the model: {first_few(unknown)} unexpected")
    ours = {names.ours(name): value for name, value in tensors.items()}
    turned = {name: names.turned(name, value).contiguous() for name, value in ours.items()}
    if tied and (output := turned.pop("output.weight", None)) is not None:
        embedding = turned.get("embedding.weight")
        check_formats({"lm_head.weight": output})
        check_finite({"lm_head.weight": output})  # NaN is not equal to itself
        if embedding is None or embedding.dtype != output.dtype or not torch.equal(output, embedding):
            raise ValueError(
                f"tie_word_embeddings is true in {CONFIG}, but lm_head.weight is not {names.theirs('embedding.weight')}"
            )
    return turned


def _check_sizes(settings: Mapping[str, Any], weights: Mapping[str, Tensor], names: TensorNames) -> None:
    """Check the sizes that a config claims before a model is built with them, since they could be huge."""
    blocks = {name.split(".")[1] for name in weights if name.startswith("layers.")}
    n_layer = settings["model.n_layer"]
    missing = next((number for number in range(n_layer) if str(number) not in blocks), None)
    if missing is not None:
        raise ValueError(f"the weights do not fit the model: {names.prefix}.{missing} missing, of {n_layer} layers")
    rows = settings["model.vocab_size"], settings["model.d_model"]
    found = weights.get("embedding.weight")
    if found is None or tuple(found.shape) != rows:
        size = "missing" if found is None else f"{' × '.join(map(str, found.shape))} instead of {rows[0]} × {rows[1]}"
        raise ValueError(f"the weights do not fit the model: {names.theirs('embedding.weight')} is {size}")


def _tokenizer(folder: Path, vocab_size: int) -> StoredTokenizer | None:
    """Return the folder's tokenizer, if it has one; raise ValueError if it is not the model's."""
    if not (folder / TOKENIZER_FILE).is_file():
        return None
    tokenizer = load_tokenizer(folder)
    refuse_more_ids(tokenizer, vocab_size, folder)
    return tokenizer
