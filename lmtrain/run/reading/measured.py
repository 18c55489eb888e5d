"""Measures a run's model on splits and texts: the loss of each document, at each position and of each source."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from lmtrain.config.build import raising_config_errors
from lmtrain.config.token_files import token_folders
from lmtrain.data.meta import check_tokenizer
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE
from lmtrain.data.token_files import TokenFiles
from lmtrain.errors import ConfigError
from lmtrain.evaluate.measurement import Measurement, measure, together
from lmtrain.evaluate.texts import read_documents, text_stream
from lmtrain.evaluate.token_losses import TokenStream, token_losses
from lmtrain.files.durable import sha256_of
from lmtrain.loop.evaluation import perplexity
from lmtrain.run.reading.loaded import LoadedModel
from lmtrain.run.reading.run_data import NO_TOKENIZER, data_node

DEFAULT_BATCH = 8  # windows at once, for a run whose config does not say


@dataclass(frozen=True)
class Measured:
    """A model's measurement of one text, or of several together.

    Attributes:
        run: The run directory.
        step: The optimizer steps of the checkpoint.
        tokenizer: The hash of the run's tokenizer; None if it has none.
        total: All texts together.
        parts: Each text, such as the sources of a mixture; empty for a single one.
    """

    run: Path
    step: int
    tokenizer: str | None
    total: Measurement
    parts: Sequence[Measurement] = ()


def split_streams(loaded: LoadedModel, split: str, data: Path | None) -> list[TokenStream]:
    """Return the tokens of a split: of the run's own data, each source of a mixture, or of another folder.

    Raises:
        ConfigError: There is no such data, or it was made with another tokenizer.
    """
    node = OmegaConf.create(data_node(loaded.config.data, data, loaded.directory))
    streams = []
    with raising_config_errors():
        for key, folder in token_folders(node).items():
            check_tokenizer(folder, beside=loaded.directory)
            files = TokenFiles(folder, split, node.get("dtype"))
            source = key.removeprefix("data.paths.") if key.startswith("data.paths.") else ""
            end = files.meta.end_of_text if files.meta else loaded.tokenizer.end_of_text if loaded.tokenizer else None
            size = files.meta.splits[split].kept_bytes if files.meta else None
            streams.append(TokenStream(source or split, len(files), files.span, end, size or None))
    if not streams:
        raise ConfigError(f"{loaded.directory}: its loader ({node.get('_target_')}) has no folder of token files")
    return streams


def text_streams(loaded: LoadedModel, files: Sequence[Path], separator: str | None) -> list[TokenStream]:
    """Return the tokens of text files, made with the run's tokenizer.

    Raises:
        ConfigError: The run has no tokenizer, or a file can't be read or encoded.
    """
    if loaded.tokenizer is None:
        raise ConfigError(f"--text: {loaded.directory} {NO_TOKENIZER}")
    with raising_config_errors():
        return [text_stream(str(path), read_documents(path, separator), loaded.tokenizer) for path in files]


def measure_model(loaded: LoadedModel, streams: Sequence[TokenStream], name: str, stride: int | None) -> Measured:
    """Measure a model on texts.

    Args:
        loaded: The model.
        streams: The texts.
        name: The name of all texts together.
        stride: The tokens between the starts of two windows, from 1 to the run's `data.block_size`; None means that
            the windows do not overlap.

    Raises:
        ConfigError: A text does not fit the model, or the stride is out of range.
    """
    block_size = int(loaded.config.data.block_size)
    batch_size = loaded.config.data.get("batch_size")
    parts = []
    with loaded.torch_as_in_the_run(), raising_config_errors():
        for stream in streams:
            scored = token_losses(
                loaded.model,
                loaded.system,
                stream,
                block_size=block_size,
                stride=block_size if stride is None else stride,
                batch_size=batch_size if isinstance(batch_size, int) else DEFAULT_BATCH,
            )
            parts.append(measure(stream, scored, block_size))
    file = loaded.directory / TOKENIZER_FILE
    tokenizer = sha256_of(file) if file.is_file() else None
    total = together(name, parts)
    return Measured(loaded.directory, loaded.step, tokenizer, total, parts if len(parts) > 1 else ())


def as_json(measured: Measured) -> dict[str, object]:
    """Return a measurement in plain containers."""
    return {
        "run": str(measured.run),
        "step": measured.step,
        **_fields(measured.total),
        "parts": [_fields(part) for part in measured.parts],
    }


def _fields(found: Measurement) -> dict[str, object]:
    over = found.over_documents
    return {
        "name": found.name,
        "tokens": found.tokens,
        "documents": over.documents,
        "loss": found.loss,
        "standard_error": over.standard_error,
        "interval_95": [over.low, over.high],
        "perplexity": perplexity(found.loss),
        "bits_per_byte": found.bits_per_byte,
        "bytes": found.bytes,
        "by_position": [
            {"first": each.first, "last": each.last, "tokens": each.tokens, "loss": each.loss}
            for each in found.by_position()
        ],
    }
