"""Writes the model of a run as a folder that transformers and vLLM load without code from elsewhere."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from lmtrain.convert.export_remarks import remarks_on_documents
from lmtrain.convert.hugging_face.model_config import exported_config
from lmtrain.convert.hugging_face.tensor_names import GPT2, LLAMA, TensorNames
from lmtrain.convert.hugging_face.weights_files import write_weights
from lmtrain.convert.model_card import write_model_card
from lmtrain.convert.new_folder import complete_folder
from lmtrain.convert.tokenizer_check import refuse_more_ids
from lmtrain.data.stored_tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, StoredTokenizer
from lmtrain.files.durable import write_atomically
from lmtrain.files.limited import read_json_limited
from lmtrain.model.transformers_model import TransformersModel
from lmtrain.run.reading.loaded import LoadedModel
from lmtrain.run.reading.stored_run import Run

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
CONFIG_BYTES = 16 << 20


def export_folder(loaded: LoadedModel, folder: Path, dtype: str) -> list[str]:
    """Write the model, its tokenizer and a model card into a new folder, and return remarks about them.

    Args:
        loaded: The model, on the CPU.
        folder: A folder that does not exist or is empty. It appears when it is complete.
        dtype: The number format of the weights: float32, bfloat16 or float16.

    Raises:
        ValueError: transformers has no such model, a weight does not fit the number format, or the folder is used.
        OSError: The folder can't be written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype}: not one of {', '.join(DTYPES)}")
    model: Mapping[str, Any] = OmegaConf.to_container(loaded.config.model, resolve=True)  # type: ignore[assignment]
    tokenizer, end_of_text = loaded.tokenizer, end_of_text_of(loaded)
    # First, since it refuses a model that transformers does not have, whose arguments may have any names.
    write = _writer(model, loaded.model, end_of_text, dtype)
    refuse_more_ids(tokenizer, model["vocab_size"], loaded.directory)
    with complete_folder(folder, "--to hf ") as partial:
        write(partial)
        _write_other_files(partial, tokenizer, end_of_text, model["block_size"])
        about_card = write_model_card(partial, Run(loaded.directory.absolute()), loaded.config, loaded.step)
    without = f"the run has no {TOKENIZER_FILE}, so the folder has none either: give token ids to the model"
    about_tokenizer = [without] if tokenizer is None else []
    return [*about_tokenizer, *remarks_on_documents(model, "transformers"), *about_card]


def _writer(config: Mapping[str, Any], model: nn.Module, end_of_text: int | None, dtype: str) -> Callable[[Path], None]:
    """Return what writes config and weights into a folder; raise ValueError for a model that can't be exported."""
    if isinstance(model, TransformersModel):
        return lambda folder: _save_transformers_model(folder, model, dtype, end_of_text)
    exported = _exported(config, model, end_of_text, dtype)
    return lambda folder: _write_model(folder, *exported)


def write_model_files(
    folder: Path, config: Mapping[str, Any], model: nn.Module, end_of_text: int | None, dtype: str
) -> None:
    """Write only config and weights of a model into an existing folder.

    Args:
        folder: The folder.
        config: The resolved `model` node of its config.
        model: The model, on any device.
        end_of_text: The id that ends a document, if there is one.
        dtype: The number format of the weights, see `DTYPES`.

    Raises:
        ValueError: transformers has no such model, or a weight does not fit the number format.
    """
    _write_model(folder, *_exported(config, model, end_of_text, dtype))


def _exported(
    config: Mapping[str, Any], model: nn.Module, end_of_text: int | None, dtype: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the content of `config.json`, and the weights."""
    theirs = exported_config(config, end_of_text, dtype)
    return theirs, exported_weights(model, names_of(theirs), DTYPES[dtype])


def _write_model(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    _write_json(folder / CONFIG, config)
    write_weights(folder, weights)


def end_of_text_of(loaded: LoadedModel) -> int | None:
    """Return the id that ends a document: the tokenizer's, or else the one in the model's config."""
    if loaded.tokenizer is not None:
        return loaded.tokenizer.end_of_text
    found = loaded.config.model.get("end_of_text")
    return None if found is None else int(found)


def names_of(config: Mapping[str, Any]) -> TensorNames:
    """Return the names of tensors for a `config.json`."""
    return GPT2 if config["model_type"] == "gpt2" else LLAMA


def exported_weights(model: nn.Module, names: TensorNames, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a model's weights by their names in transformers, in its directions and in a number format.

    transformers' GPT-2 always has biases; where this model has none, they are zeros, which changes nothing.

    Raises:
        ValueError: A weight is too large for the number format.
    """
    state = model.state_dict()
    if names is GPT2:
        state |= _zero_biases(state)
    return {names.theirs(name): _cast(name, names.turned(name, tensor), dtype) for name, tensor in state.items()}


def _zero_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = [name for name in state if re.search(r"norm\.weight$|^layers\..*\.weight$", name)]
    biases = {name.removesuffix("weight") + "bias": len(state[name]) for name in weights}
    return {name: torch.zeros(size) for name, size in biases.items() if name not in state}


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    cast = tensor.detach().to(dtype).contiguous()
    if not bool(cast.isfinite().all()) and bool(tensor.isfinite().all()):
        raise ValueError(
            f"--dtype {str(dtype).removeprefix('torch.')}: {name} has numbers up to {tensor.abs().max():.3g}, "
            "which are too large for it; use bfloat16 or float32"
        )
    return cast


def _save_transformers_model(folder: Path, model: TransformersModel, dtype: str, end_of_text: int | None) -> None:
    """Let transformers write its model, whose classes may store tensors in other ways than they hold them."""
    state = model.model.state_dict()
    cast = {
        name: _cast(name, tensor, DTYPES[dtype]) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    for parameter in model.model.parameters():
        parameter.requires_grad_(False)
    model.model.save_pretrained(folder, state_dict=cast, max_shard_size="5GB")
    config = read_json_limited(folder / CONFIG, CONFIG_BYTES)
    config |= {"dtype": dtype, "torch_dtype": dtype, "use_cache": True}
    config |= {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    _write_json(folder / CONFIG, config)


def _write_other_files(
    folder: Path, tokenizer: StoredTokenizer | None, end_of_text: int | None, block_size: int
) -> None:
    """Write the generation config and, if there is one, the tokenizer."""
    generation = {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "pad_token_id": end_of_text}
    _write_json(folder / GENERATION_CONFIG, {**generation, "do_sample": True})
    if tokenizer is None:
        return
    end = None if tokenizer.end_of_text is None else tokenizer.tokenizer.id_to_token(tokenizer.end_of_text)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "clean_up_tokenization_spaces": False,  # transformers < 5 would remove spaces from decoded text
        "split_special_tokens": True,  # the name of a special token in a text is ordinary text, as in training
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_atomically(folder / TOKENIZER_FILE, tokenizer.tokenizer.to_str())
    _write_json(folder / TOKENIZER_CONFIG_FILE, config)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
