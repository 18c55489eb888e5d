"""Writes the model of a run as one GGUF file for llama.cpp."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmtrain.convert.export_remarks import remarks_on_documents
from lmtrain.convert.gguf.tensors import gguf_model
from lmtrain.convert.gguf.vocabulary import GGUFVocabulary, gguf_vocabulary
from lmtrain.convert.tokenizer_check import refuse_more_ids
from lmtrain.errors import ConfigError
from lmtrain.files.durable import make_folder, sync
from lmtrain.machine import is_installed
from lmtrain.run.reading.loaded import LoadedModel

if TYPE_CHECKING:
    import gguf

FORMATS: Mapping[str, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
LLAMA_CPP_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}  # are understood, too
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7}  # gguf.LlamaFileType
Q8_BLOCK = 32  # values that share a scale


def export_gguf(loaded: LoadedModel, path: Path, dtype: str) -> list[str]:
    """Write a model with its tokenizer as a GGUF file, under another name until it is complete; return remarks.

    Matrices have the given format; vectors, and the positions of GPT-2, are float32. A matrix whose rows are not a
    multiple of 32 values is float16 instead of q8_0.

    Args:
        loaded: The model of a run.
        path: The file; it must not exist.
        dtype: `float32`, `float16`, `bfloat16` or `q8_0`, or a name of llama.cpp such as `f16`.

    Raises:
        ValueError: The package gguf is missing, the file exists, llama.cpp lacks something that the model has, or the
            run has no tokenizer, or that of another model.
        OSError: The file can't be written. Nothing is left behind.
    """
    dtype = LLAMA_CPP_NAMES.get(dtype, dtype)
    if dtype not in FORMATS:
        raise ConfigError(f"--dtype {dtype}: a GGUF file has one of {', '.join(FORMATS)}")
    if not is_installed("gguf"):
        raise ConfigError("--to gguf: needs the package gguf; install it with pip install 'lmtrain[gguf]'")
    if path.exists():
        raise ConfigError(f"{path}: exists already; give another file")
    if loaded.tokenizer is None:
        raise ConfigError(f"{loaded.directory}: has no tokenizer, which a GGUF file needs")
    options: dict[str, Any] = {str(key): value for key, value in loaded.config.model.items()}
    model = gguf_model(loaded.model, options)
    vocab_size = len(model.tensors["token_embd.weight"])
    refuse_more_ids(loaded.tokenizer, vocab_size, loaded.directory)
    vocabulary = gguf_vocabulary(loaded.tokenizer, vocab_size)
    make_folder(path.absolute().parent)
    partial = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    partial.unlink(missing_ok=True)  # left by a killed process with the same number
    try:
        import gguf

        writer = gguf.GGUFWriter(partial, model.architecture)
        _add_settings(writer, loaded, model.settings, FORMATS[dtype])
        _add_vocabulary(writer, vocabulary)
        for name, tensor in model.tensors.items():
            data, kind = _encoded(name, tensor, dtype)
            writer.add_tensor(name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.errno is None:  # NumPy reports a full disk in this way
            raise OSError(f"{path}: could be written only in part ({error}); free some space on the disk") from error
        raise
    unknown = "characters that the run's text did not have, which lmtrain refuses, are not errors in llama.cpp"
    return [*remarks_on_documents(options, "llama.cpp"), *([] if vocabulary.unknown is None else [unknown])]


def _add_settings(
    writer: "gguf.GGUFWriter", loaded: LoadedModel, settings: Mapping[str, int | float], form: str
) -> None:
    import gguf

    writer.add_name(str(loaded.config.get("name", loaded.directory.name)))
    writer.add_description(f"written by lmtrain, after step {loaded.step:,} of a run")
    writer.add_file_type(FILE_TYPES[form])
    if form == "Q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in settings.items():
        if isinstance(value, float):
            writer.add_float32(f"{writer.arch}.{key}", value)
        else:
            writer.add_uint32(f"{writer.arch}.{key}", value)


def _add_vocabulary(writer: "gguf.GGUFWriter", vocabulary: GGUFVocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.types))
    writer.add_add_bos_token(False)
    if vocabulary.pre is not None:
        writer.add_tokenizer_pre(vocabulary.pre)
        writer.add_token_merges(list(vocabulary.merges))
    if vocabulary.unknown is not None:
        writer.add_unk_token_id(vocabulary.unknown)
    if vocabulary.end_of_text is not None:  # a document begins after the end of the one before
        writer.add_bos_token_id(vocabulary.end_of_text)
        writer.add_eos_token_id(vocabulary.end_of_text)


def _encoded(name: str, tensor: Tensor, dtype: str) -> "tuple[npt.NDArray[Any], gguf.GGMLQuantizationType]":
    """Return a tensor's bytes in the format of `FORMATS`, and the format that it really has."""
    import gguf

    form, why = FORMATS[dtype], ""
    if tensor.ndim < 2 or name == "position_embd.weight":
        form = "F32"
    elif form == "Q8_0" and tensor.shape[1] % Q8_BLOCK:
        form, why = "F16", f", but is float16 as its rows are no multiple of {Q8_BLOCK} values"
    kind = gguf.GGMLQuantizationType[form]
    if form == "F16" and float(tensor.abs().max()) > torch.finfo(torch.float16).max:
        raise ConfigError(f"--dtype {dtype}: {name} has values above 65,504{why}; use bfloat16 or float32")
    array = np.ascontiguousarray(tensor.numpy())
    return gguf.quants.quantize(array, kind), kind
