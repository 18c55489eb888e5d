"""Losses of single tokens: each token once, in transformers' windows, and summed over documents without loss."""

import math

import numpy as np
import pytest
import torch

from lmtrain.evaluate.measurement import measure, paired_difference
from lmtrain.evaluate.statistics import ratio
from lmtrain.evaluate.token_losses import TokenStream, token_losses, windows
from lmtrain.model.gpt2 import GPT2
from lmtrain.system import System

TOKENS = np.random.default_rng(0).integers(0, 61, 200)


def stream() -> TokenStream:
    return TokenStream("text", len(TOKENS), lambda start, stop: TOKENS[start:stop], end_of_text=7)


@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("length", [2, 8, 9, 10, 61])
def test_each_token_is_predicted_once_with_enough_context(length: int, stride: int) -> None:
    seen = []
    for window in windows(length, 8, stride):
        assert window.stop - window.start <= 8
        assert window.start == 0 or window.scored - window.start >= 8 - stride + 1
        seen += range(window.scored, window.stop + 1)
    assert seen == list(range(1, length))


@pytest.mark.parametrize("stride", [1, 5, 15])
def test_strided_losses_are_those_of_a_loop_over_windows(stride: int) -> None:
    torch.manual_seed(0)
    model = GPT2(vocab_size=61, block_size=15, n_layer=2, n_head=4, d_model=32).double().eval()
    system = System(device="cpu", dtype="float32", compile=False)
    scored = list(token_losses(model, system, stream(), block_size=15, stride=stride, batch_size=4))
    expected, previous = [], 0
    for begin in range(0, len(TOKENS), stride):  # as in "Perplexity of fixed-length models"
        end = min(begin + 16, len(TOKENS))
        ids = torch.from_numpy(TOKENS[begin:end])[None]
        with torch.no_grad():
            logs = model(ids[:, :-1])[0][0].log_softmax(-1)
        each = -logs.gather(1, ids[0, 1:, None])[:, 0]
        expected.append(each[-min(end - previous, end - begin - 1) :].numpy())
        previous = end
        if end == len(TOKENS):
            break
    found = np.concatenate([piece.losses for piece in scored])
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=0, atol=1e-12)
    measured = measure(stream(), scored, 15)
    assert measured.loss == pytest.approx(found.mean(), abs=1e-12)
    assert len(measured.document_tokens) == 1 + int((TOKENS[:-1] == 7).sum()) - (TOKENS[0] == 7)
    assert sum(each.tokens for each in measured.by_position()) == len(TOKENS) - 1
    assert paired_difference(measured, measured, per_byte=False).value == 0


def test_the_standard_error_of_equal_documents_is_that_of_a_mean() -> None:
    values = np.array([1.0, 2.0, 4.0, 5.0])
    found = ratio(values, np.ones(4))
    assert found.standard_error == pytest.approx(values.std(ddof=1) / 2)
    assert math.isnan(ratio([1.0], [2.0]).standard_error)
