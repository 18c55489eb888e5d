"""Sums over documents, of several texts, and differences between two models on the same documents."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lmtrain.errors import DataError
from lmtrain.evaluate.measurement import Measurement, paired_difference, together
from lmtrain.evaluate.statistics import ratio

RANDOM = np.random.default_rng(0)


def measurement(name: str, documents: int, seed: int = 0, *, with_bytes: bool = True) -> Measurement:
    random = np.random.default_rng(seed)
    tokens = np.random.default_rng(9).integers(5, 50, documents)
    losses = tokens * random.uniform(2, 4, documents)
    sizes = (tokens * 4.0) if with_bytes else None
    positions = np.array([0, int(tokens.sum())]), np.array([0.0, losses.sum()])
    return Measurement(
        name, losses, tokens, sizes, None if sizes is None else float(sizes.sum()), positions[1], positions[0]
    )


def test_the_standard_error_is_that_of_the_ratio_estimator_and_covers_the_truth() -> None:
    covered = 0
    for seed in range(300):
        random = np.random.default_rng(seed)
        sizes = random.integers(1, 100, 60)
        level = random.normal(3.0, 0.5, 60)  # a document is hard or easy as a whole
        found = ratio(level * sizes, sizes)
        covered += found.low <= 3.0 <= found.high
    assert covered > 300 * 0.95 - 4 * math.sqrt(300 * 0.95 * 0.05)


def test_a_pair_is_a_paired_t_test_where_documents_have_equal_sizes() -> None:
    first, other = measurement("a", 30, 1), measurement("b", 30, 2)
    equal = np.full(30, 10)
    first, other = (replace(each, document_tokens=equal) for each in (first, other))
    found = paired_difference(first, other, per_byte=False)
    expected = stats.ttest_rel(other.document_losses / 10, first.document_losses / 10)
    assert found.value == pytest.approx(other.loss - first.loss)
    assert found.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_across_tokenizers_the_difference_is_in_bits_per_byte() -> None:
    first, other = measurement("a", 30, 1), measurement("b", 30, 2)
    other = replace(other, document_tokens=other.document_tokens * 2)
    found = paired_difference(first, other, per_byte=True)
    assert first.bits_per_byte is not None
    assert other.bits_per_byte is not None
    assert found.value == pytest.approx(other.bits_per_byte - first.bits_per_byte)
    with pytest.raises(DataError, match="their documents have other tokens"):
        paired_difference(first, other, per_byte=False)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (measurement("b", 31), "they don't pair: 30 and 31 documents"),
        (measurement("b", 30, with_bytes=False), "the sizes of the documents in bytes are not known"),
        (replace(measurement("b", 30), document_bytes=np.ones(30)), "their documents have other sizes"),
    ],
)
def test_other_documents_do_not_pair(other: Measurement, message: str) -> None:
    with pytest.raises(DataError, match=message):
        paired_difference(measurement("a", 30), other, per_byte=True)


def test_texts_together_are_one_mean_over_all_tokens() -> None:
    parts = [measurement("a", 10, 1), measurement("b", 20, 2)]
    whole = together("all", parts)
    tokens = sum(part.tokens for part in parts)
    assert whole.loss == pytest.approx(sum(part.loss * part.tokens for part in parts) / tokens)
    assert whole.tokens == tokens
    assert whole.over_documents.documents == 30
    assert whole.bytes == sum(part.bytes or 0 for part in parts)
    unknown = together("all", [parts[0], measurement("b", 20, with_bytes=False)])
    assert unknown.bits_per_byte is None
    assert together("all", parts[:1]) is parts[0]
