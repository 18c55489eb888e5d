"""Packed documents give the same results as the documents alone, in both models, and compile only once."""

import copy
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from support.compiler import NEEDS_A_COMPILER
from torch import Tensor

from lmtrain.model.document_mask import starts_and_positions
from lmtrain.model.gpt2 import GPT2
from lmtrain.model.llama import Llama
from lmtrain.verify.device.numbers.rounding import BFLOAT16, FLOAT32, FLOAT64, TENSOR_FLOAT32, rounding_error

END_OF_TEXT = 3
VOCAB_SIZE, LENGTH = 61, 16
TINY: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "block_size": LENGTH,
    "n_layer": 2,
    "n_head": 4,
    "d_model": 32,
    "d_ff": 48,
}
MODELS = {
    "llama": (Llama, {"n_kv_head": None}),
    "grouped-query": (Llama, {"n_kv_head": 2}),
    "gpt2": (GPT2, {}),
}
UNIT = {torch.float64: FLOAT64, torch.float32: FLOAT32}
LONGEST_SUM = 64  # at least d_model 32, d_ff 48, the 61 ids, and the 48 tokens of a batch
every_model = pytest.mark.parametrize("name", MODELS)
every_dtype = pytest.mark.parametrize("dtype", UNIT, ids=str)


def build(name: str, **changes: Any) -> Llama | GPT2:
    """Return a model with weights so large that every token and position affects the logits visibly."""
    kind, config = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1337)
        model = kind(**{**TINY, **config, **changes})
        with torch.no_grad():
            for param in model.parameters():
                param.normal_(std=0.2)
    return model


@cache
def pair(name: str, dtype: torch.dtype) -> tuple[Llama | GPT2, Llama | GPT2]:
    """Return two models with the same weights: one masks documents, the other is plain."""
    return build(name, mask_documents=True, end_of_text=END_OF_TEXT).to(dtype), build(name).to(dtype)


@cache
def dropping(name: str) -> Llama | GPT2:
    return build(name, mask_documents=True, end_of_text=END_OF_TEXT, dropout=0.3).train()


def documents(row: list[int]) -> list[slice]:
    starts = sorted({0, *(index for index, token in enumerate(row) if token == END_OF_TEXT)})
    return [slice(start, end) for start, end in pairwise([*starts, len(row)])]


def target_losses(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def assert_within(errors: list[float], ours: list[Tensor], expected: list[Tensor]) -> None:
    for error, one, other in zip(errors, ours, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=error)


def windows(rows: int) -> st.SearchStrategy[list[list[int]]]:
    """Draw windows of one length, plus the token after each, with many and often adjacent ends of text."""
    token = st.just(END_OF_TEXT) | st.integers(0, VOCAB_SIZE - 1)
    return st.integers(2, LENGTH + 1).flatmap(
        lambda length: st.lists(st.lists(token, min_size=length, max_size=length), min_size=1, max_size=rows)
    )


E = END_OF_TEXT
PACKINGS = [
    [[5, 6, 7, 8, 9, 10]],  # no end of text
    [[E, 5, 6, E, 7, 8, 9]],  # an end of text is first
    [[5, 6, 7, 8, E, 9]],  # an end of text is last
    [[5, 6, E, E, E, 7, 8]],  # empty documents
    [[E, E, E, E]],
    [[E, 9], [9, E], [9, 9]],
    [[5, 6, E, 7, 8, 9, 10, E, 11], [E, 5, 5, 5, 5, 5, E, E, 5], [1, 2, 4, 5, 6, 7, 8, 9, 0]],
]


def with_packings(test: Any) -> Any:
    for packing in PACKINGS:
        test = example(packing)(test)
    return settings(max_examples=12, deadline=None)(test)


@every_model
@every_dtype
@with_packings
@given(windows(rows=3))
def test_a_packed_document_gives_the_same_results_as_alone(
    name: str, dtype: torch.dtype, packing: list[list[int]]
) -> None:
    masked, plain = pair(name, dtype)[0], pair(name, torch.float64)[1]
    x, y = torch.tensor(packing)[:, :-1], torch.tensor(packing)[:, 1:]

    def results(model: Llama | GPT2) -> list[Tensor]:
        logits, loss = model(x)[0], model(x, y)[1]
        return [logits, target_losses(logits, y), loss]

    with torch.no_grad():
        ours, errors = (
            results(masked),
            rounding_error(lambda: results(pair(name, torch.float64)[0]), LONGEST_SUM, UNIT[dtype]),
        )
        logits = torch.full_like(ours[0], torch.nan, dtype=torch.float64)
        for index, row in enumerate(x.tolist()):
            for document in documents(row):
                logits[index, document] = plain(x[index : index + 1, document])[0][0]
    losses = target_losses(logits, y)
    assert_within(errors, ours, [logits, losses, losses.mean()])


@pytest.mark.slow
@every_model
@every_dtype
@pytest.mark.parametrize("packing", PACKINGS)
def test_gradients_match_those_of_the_documents_alone(name: str, dtype: torch.dtype, packing: list[list[int]]) -> None:
    x, y = torch.tensor(packing)[:, :-1], torch.tensor(packing)[:, 1:]

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        masked = copy.deepcopy(pair(name, dtype)[0])
        masked(x, y)[1].backward()
        return [param.grad for param in masked.parameters()]

    plain = copy.deepcopy(pair(name, torch.float64)[1])
    for index, row in enumerate(x.tolist()):
        for document in documents(row):
            tokens, targets = x[index : index + 1, document], y[index : index + 1, document]
            (plain(tokens, targets)[1] * targets.numel() / y.numel()).backward()
    errors = rounding_error(lambda: gradients(torch.float64), LONGEST_SUM, UNIT[dtype])
    assert_within(errors, gradients(dtype), [param.grad for param in plain.parameters()])


@every_model
@every_dtype
def test_without_an_end_of_text_nothing_is_masked(name: str, dtype: torch.dtype) -> None:
    masked, plain = pair(name, dtype)[0], pair(name, torch.float64)[1]
    x = torch.arange(END_OF_TEXT + 1, END_OF_TEXT + 1 + 2 * LENGTH).view(2, LENGTH)
    with torch.no_grad():
        expected = plain(x)[0]
        assert_within(rounding_error(lambda: [plain(x)[0]], LONGEST_SUM, UNIT[dtype]), [masked(x)[0]], [expected])


@every_model
@pytest.mark.parametrize("how", ["float64", "float32", "bfloat16", "dropout"])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_no_bit_leaks_into_later_documents(name: str, how: str, data: st.DataObject) -> None:
    dtype = torch.float64 if how == "float64" else torch.float32
    model = dropping(name) if how == "dropout" else pair(name, dtype)[0]
    before = torch.tensor(data.draw(windows(rows=2)))[:, :-1]
    ends = (before[0] == END_OF_TEXT).nonzero().flatten().tolist()
    assume(ends and ends[-1] > 0)
    later = data.draw(st.sampled_from([end for end in ends if end > 0]))
    changed = data.draw(st.integers(0, later - 1))
    after = before.clone()
    after[0, changed] = data.draw(st.integers(0, VOCAB_SIZE - 1).filter(lambda token: token != before[0, changed]))

    def logits(tokens: Tensor) -> Tensor:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=how == "bfloat16"):
            torch.manual_seed(0)  # for dropout
            return model(tokens)[0]

    one, other = logits(before), logits(after)
    assert torch.equal(one[0, later:], other[0, later:])
    assert torch.equal(one[1:], other[1:])
    assert how == "dropout" or not torch.equal(one[0, changed], other[0, changed])


@every_model
def test_positions_restart(name: str) -> None:
    """The same document has the same logits anywhere in a window only if its positions restart."""
    masked, plain = pair(name, torch.float64)
    document = [END_OF_TEXT, 9, 8, 7, 6]
    x = torch.tensor([[40, 41, *document, *document]])
    with torch.no_grad():
        logits = masked(x)[0][0]
        torch.testing.assert_close(logits[2:7], logits[7:12], rtol=1e-10, atol=1e-10)
        assert (plain(x)[0][0, 2:7] - plain(x)[0][0, 7:12]).abs().max() > 1e-3


def test_starts_and_positions_of_a_window() -> None:
    starts, positions = starts_and_positions(torch.tensor([[5, 6, E, 7, E, E], [E, 5, 5, 5, 5, 5]]), E)
    assert starts.tolist() == [[0, 0, 2, 2, 4, 5], [0, 0, 0, 0, 0, 0]]
    assert positions.tolist() == [[0, 1, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5]]


@every_model
def test_bfloat16_is_close_to_float64(name: str) -> None:
    masked, exact = pair(name, torch.float32)[0], pair(name, torch.float64)[0]
    x = torch.tensor([[5, 6, E, 7, 8, 9, 10, E], [E, 5, 5, 5, 5, 5, E, E]])
    with torch.no_grad():
        expected = exact(x)[0]
        errors = rounding_error(lambda: [exact(x)[0]], 2, BFLOAT16)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = masked(x)[0]
    assert rounded.dtype == torch.bfloat16
    assert_within(errors, [rounded], [expected])
    assert (rounded - expected).norm() < 0.05 * expected.norm()  # twelve roundings of 2⁻⁸ in a row


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, NEEDS_A_COMPILER])])
@pytest.mark.parametrize("name", ["grouped-query", "gpt2"])
def test_one_graph_serves_every_batch(name: str, backend: str) -> None:
    from torch._dynamo.utils import counters  # the compiler takes seconds to import

    torch._dynamo.reset()
    counters.clear()
    model = build(name, mask_documents=True, end_of_text=END_OF_TEXT, n_layer=1).double()
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    packings = torch.randint(8, (4, 3, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    packings[2, packings[2] == END_OF_TEXT] = 0
    try:
        for step, packing in enumerate(packings):
            with torch.compiler.set_stance("fail_on_recompile" if step else "default"):
                losses = [forward(packing[:, :-1], packing[:, 1:])[1] for forward in (compiled, eager)]
            for loss in losses:
                loss.backward()
            torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-10)  # a million roundings in float64
        for ours, expected in zip(model.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-10, atol=1e-10)
        assert counters["stats"]["unique_graphs"] == 1
    finally:
        torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_model
def test_on_cuda_nothing_waits_and_the_logits_match_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses deterministic products
    model, exact = pair(name, torch.float32)[0], pair(name, torch.float64)[0]
    x = torch.tensor(PACKINGS[-1])
    with torch.no_grad():
        expected = exact(x)[0]
        errors = rounding_error(lambda: [exact(x)[0]], 2, TENSOR_FLOAT32)  # other tests may have allowed it
    on_cuda, x = copy.deepcopy(model).cuda(), x.cuda()
    torch.use_deterministic_algorithms(True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        logits = on_cuda(x)[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(False)
    assert_within(errors, [logits.cpu()], [expected])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_mistakes_name_the_key(name: str) -> None:
    with pytest.raises(ValueError, match=r"model\.end_of_text=null: model\.mask_documents=true needs .* give model"):
        build(name, mask_documents=True)
    for mask_documents in (True, False):
        with pytest.raises(ValueError, match=r"model\.end_of_text=61: .* less than model\.vocab_size=61"):
            build(name, mask_documents=mask_documents, end_of_text=VOCAB_SIZE)
    assert build(name, end_of_text=VOCAB_SIZE - 1).end_of_text is None
    assert build(name, mask_documents=True, end_of_text=0).end_of_text == 0
