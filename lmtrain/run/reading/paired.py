"""Compares models with the first of them on the same documents."""

from collections.abc import Sequence
from dataclasses import dataclass

from lmtrain.errors import ConfigError, DataError
from lmtrain.evaluate.measurement import paired_difference
from lmtrain.run.reading.measured import Measured

PER_TOKEN, PER_BYTE = "nats/token", "bits/byte"


@dataclass(frozen=True)
class Pair:
    """The loss of a model minus that of the first one on the same documents.

    Attributes:
        run: The run directory of the model.
        step: The optimizer steps of its checkpoint.
        unit: `nats/token`, or `bits/byte` for models with different tokenizers.
        difference: The difference; negative if this model is better.
        standard_error: Its standard error over documents; NaN for one document.
        low: The lower end of the 95% interval.
        high: The upper end.
        p: The two-sided p-value that there is no difference.
        documents: The number of documents.
    """

    run: str
    step: int
    unit: str
    difference: float
    standard_error: float
    low: float
    high: float
    p: float
    documents: int


def pair_with_first(measured: Sequence[Measured]) -> list[Pair]:
    """Compare each model with the first one.

    Raises:
        ConfigError: They were not measured on the same documents, or their tokenizers differ and the sizes of the
            documents are not known.
    """
    first, *others = measured
    pairs = []
    for other in others:
        per_byte = first.tokenizer != other.tokenizer
        if per_byte and (first.total.document_bytes is None or other.total.document_bytes is None):
            raise ConfigError(
                f"--paired: {other.run} has another tokenizer than {first.run}, and token files do not tell the bytes "
                "of each document; give the text with --text"
            )
        try:
            found = paired_difference(first.total, other.total, per_byte=per_byte)
        except DataError as error:
            raise ConfigError(f"--paired: {first.run} and {other.run}: {error}") from error
        pairs.append(
            Pair(
                str(other.run),
                other.step,
                PER_BYTE if per_byte else PER_TOKEN,
                found.value,
                found.standard_error,
                found.low,
                found.high,
                found.p,
                found.documents,
            )
        )
    return pairs
