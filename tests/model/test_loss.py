"""The loss in chunks, and its gradients, agree with torch's cross_entropy of whole logits in float64."""

import contextlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.compiler import NEEDS_A_COMPILER
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lmtrain.model import loss as module
from lmtrain.model.loss import IGNORE, linear_cross_entropy

# Unit roundoffs of the factors of products; float16's and bfloat16's products are added in float32.
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
every_dtype = pytest.mark.parametrize("dtype", UNIT, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make small tests use several chunks."""
    monkeypatch.setattr(module, "CHUNK_ROWS", 8)
    monkeypatch.setattr(module, "WHOLE_LOGITS", 0)


def problem(rows: int, width: int, vocabulary: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=random)
    weight = torch.randn(vocabulary, width, generator=random) * 2 * width**-0.5  # logits of a standard deviation of 2
    return hidden, weight, torch.randint(vocabulary, (rows,), generator=random)


def gradients(
    loss_of: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Return the loss and the gradients of the hidden rows and the weight."""
    leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    with torch.autocast("cpu", dtype) if dtype.itemsize == 2 else contextlib.nullcontext():
        loss = loss_of(*leaves, targets)
    loss.backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def whole(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets)


def error_bounds(hidden: Tensor, weight: Tensor, targets: Tensor, unit: float) -> list[Tensor]:
    """Bound the rounding errors of the loss and its gradients, entry by entry.

    A product of matrices errs by at most (n + 2)u |A||B| (Higham, section 3.5), where n counts additions only if they
    are rounded as coarsely as the factors. An error e of the logits changes a loss by at most 2e, and a probability p
    by at most 2ep. The factor 2 leaves room for terms of second order, and the exponentials and sums of float32.
    """
    h, w, float32 = hidden.double(), weight.double(), 2.0**-24
    rows, vocabulary = len(h), len(w)
    counted = (targets != IGNORE)[:, None]
    terms = lambda n: 2 * unit + (n + 4) * float32  # noqa: E731
    logits = h @ w.T
    of_logits = (terms(h.shape[1]) * h.abs() @ w.abs().T + unit * logits.abs()).amax(1, keepdim=True)
    sums = (vocabulary + rows + 8) * float32
    p = logits.softmax(1)
    errors = (p - F.one_hot(targets.clamp(min=0), vocabulary)) * counted
    of_errors = ((2 * of_logits + sums) * p + unit * errors.abs() + float32) * counted
    n = counted.sum().clamp(min=1)
    loss = logits.logsumexp(1) + logits.abs().amax(1)
    return [
        2 * ((2 * of_logits[:, 0] + sums * (1 + loss)) * counted[:, 0]).sum() / n,
        2 * (of_errors @ w.abs() + terms(vocabulary) * errors.abs() @ w.abs() + unit * (errors @ w).abs()) / n,
        2 * (of_errors.T @ h.abs() + (terms(rows) + 2 * unit) * errors.abs().T @ h.abs()) / n,
    ]


def assert_within(got: list[Tensor], exact: list[Tensor], bounds: list[Tensor]) -> None:
    for name, one, other, bound in zip(("loss", "hidden", "weight"), got, exact, bounds, strict=True):
        excess = ((one.double() - other).abs() - bound).max().item()
        assert excess <= 0, f"{name}: {excess} beyond a bound of at most {bound.max().item()}"


@every_dtype
@settings(max_examples=12, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 50), st.integers(0, 99), st.floats(0, 1))
@example(16, 4, 10, 0, 0.0)  # full chunks
@example(17, 4, 10, 0, 0.5)  # a chunk of one row
@example(40, 4, 10, 0, 0.5)  # transposed matrices in 16 bits
def test_loss_and_gradients_match_whole_logits_in_float64(
    dtype: torch.dtype, rows: int, width: int, vocabulary: int, seed: int, ignored: float
) -> None:
    hidden, weight, targets = problem(rows, width, vocabulary, seed)
    targets[1:][torch.rand(rows - 1, generator=torch.Generator().manual_seed(seed)) < ignored] = IGNORE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_ROWS", 8)
        patch.setattr(module, "WHOLE_LOGITS", 0)
        got = gradients(linear_cross_entropy, hidden, weight, targets, dtype)
    exact = gradients(whole, hidden.double(), weight.double(), targets)
    assert [tensor.dtype for tensor in got] == [torch.float32] * 3
    assert_within(got, exact, error_bounds(hidden, weight, targets, UNIT[dtype]))


def test_a_chunk_may_have_no_target(small_chunks: None) -> None:
    hidden, weight, targets = problem(24, 5, 11)
    targets[8:16] = IGNORE
    got, exact = (gradients(loss, hidden.double(), weight.double(), targets) for loss in (linear_cross_entropy, whole))
    for one, other in zip(got, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
    assert not got[1][8:16].any()


def test_without_any_target_the_loss_is_nan_and_the_gradients_are_zero(small_chunks: None) -> None:
    hidden, weight, targets = problem(20, 5, 11)
    targets[:] = IGNORE
    for loss in (linear_cross_entropy, whole):
        result, *grads = gradients(loss, hidden, weight, targets)
        assert result.isnan()
        assert not any(grad.any() for grad in grads)


def test_tied_weights_get_both_gradients(small_chunks: None) -> None:
    _, weight, targets = problem(20, 5, 11)
    found = []
    for loss in (linear_cross_entropy, whole):
        leaf = weight.double().requires_grad_()
        loss(torch.tanh(F.embedding(targets.flip(0), leaf)), leaf, targets).backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found, rtol=0, atol=1e-13)


@pytest.mark.parametrize("frozen", [0, 1], ids=["hidden", "weight"])
def test_a_frozen_input_gets_no_gradient(small_chunks: None, frozen: int) -> None:
    hidden, weight, targets = problem(20, 5, 11)
    both = gradients(linear_cross_entropy, hidden, weight, targets)[1:]
    leaves = [tensor.clone().requires_grad_(index != frozen) for index, tensor in enumerate((hidden, weight))]
    linear_cross_entropy(*leaves, targets).backward()
    assert leaves[frozen].grad is None
    assert torch.equal(leaves[1 - frozen].grad, both[1 - frozen])


@every_dtype
def test_the_loss_without_gradients_has_the_same_bits(small_chunks: None, dtype: torch.dtype) -> None:
    hidden, weight, targets = problem(20, 5, 11)
    trained = gradients(linear_cross_entropy, hidden, weight, targets, dtype)[0]
    with torch.no_grad(), torch.autocast("cpu", dtype) if dtype.itemsize == 2 else contextlib.nullcontext():
        assert torch.equal(linear_cross_entropy(hidden, weight, targets), trained)


def test_float16_gradients_do_not_vanish(small_chunks: None) -> None:
    """With 2²⁰ targets and a scale of 2⁻⁴, a gradient divided by their number would be below float16's least value."""
    rows = 40
    hidden, weight, targets = problem(rows, 8, 30)
    targets = targets.repeat(100)
    hidden = hidden.repeat(100, 1).requires_grad_()
    weight.requires_grad_()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-4)
    optimizer = torch.optim.SGD([hidden, weight], lr=0.0)
    with torch.autocast("cpu", torch.float16):
        loss = linear_cross_entropy(hidden, weight, targets)
    scaler.scale(loss * 2.0**-8).backward()
    scaler.unscale_(optimizer)
    once = gradients(whole, hidden.detach().double(), weight.detach().double(), targets)
    for got, exact in zip((hidden.grad, weight.grad), once[1:], strict=True):
        assert got is not None
        scale = exact.abs().max()
        torch.testing.assert_close(got.double() * 2.0**8 / scale, exact / scale, rtol=0, atol=20 * UNIT[torch.float16])


def test_large_float16_sums_do_not_overflow(small_chunks: None) -> None:
    hidden = torch.full((8, 2), 30000.0)  # a chunk adds up to 240,000, and float16 ends at 65,504
    weight = torch.zeros(3, 2)
    targets = torch.zeros(8, dtype=torch.int64)
    grads = gradients(linear_cross_entropy, hidden, weight, targets, torch.float16)
    torch.testing.assert_close(grads[2][0], torch.full((2,), -20000.0), rtol=2 * UNIT[torch.float16], atol=0)


def test_a_small_loss_of_large_logits_is_precise(small_chunks: None) -> None:
    hidden, weight = torch.ones(2, 1), torch.tensor([[1000.0], [990.0]])  # ln(1 + e⁻¹⁰) is lost in 1000 + ln(…)
    targets = torch.zeros(2, dtype=torch.int64)
    got, exact = (gradients(loss, hidden, weight, targets)[0] for loss in (linear_cross_entropy, whole))
    torch.testing.assert_close(got, exact, rtol=1e-3, atol=0)
    assert exact.item() == pytest.approx(4.54e-5, rel=1e-2)


@pytest.mark.parametrize("target", [-1, 11, 12345, -101])
@pytest.mark.parametrize("loss", [whole, linear_cross_entropy])
def test_a_target_out_of_range_is_an_index_error(small_chunks: None, loss: Any, target: int) -> None:
    hidden, weight, targets = problem(20, 5, 11)
    targets[13] = target
    with pytest.raises(IndexError, match=f"Target {target} is out of bounds"):
        loss(hidden, weight, targets)


def test_a_second_derivative_is_refused(small_chunks: None) -> None:
    hidden, weight, targets = problem(20, 5, 11)
    loss = linear_cross_entropy(hidden.requires_grad_(), weight, targets)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_few_logits_are_computed_as_a_whole() -> None:
    """The small models of the examples keep the bits of torch's own loss."""
    hidden, weight, targets = problem(768, 128, 65)
    got, exact = (gradients(loss, hidden, weight, targets) for loss in (linear_cross_entropy, whole))
    assert all(torch.equal(one, other) for one, other in zip(got, exact, strict=True))


def test_every_product_is_counted_once(small_chunks: None) -> None:
    hidden, weight, targets = problem(20, 5, 11)
    with FlopCounterMode(display=False) as counter:
        gradients(linear_cross_entropy, hidden, weight, targets)
    assert counter.get_total_flops() == 3 * 2 * 20 * 5 * 11


@pytest.mark.slow
@NEEDS_A_COMPILER
@every_dtype
def test_compiled_the_loss_matches_without_a_graph_break(small_chunks: None, dtype: torch.dtype) -> None:
    hidden, weight, targets = problem(20, 5, 11)
    targets[3] = IGNORE
    compiled = torch.compile(linear_cross_entropy, fullgraph=True)
    got = gradients(compiled, hidden, weight, targets, dtype)
    exact = gradients(whole, hidden.double(), weight.double(), targets)
    assert_within(got, exact, error_bounds(hidden, weight, targets, UNIT[dtype]))
    with torch.no_grad():
        torch.testing.assert_close(compiled(hidden, weight, targets).double(), exact[0], rtol=1e-5, atol=0)


@pytest.mark.slow
@NEEDS_A_COMPILER
@every_dtype
def test_the_compiled_work_between_products_matches(dtype: torch.dtype) -> None:
    """A GPU compiles it; here the same code runs on the CPU."""
    hidden, weight, targets = problem(20, 5, 11)
    targets[3] = IGNORE
    plain, fused = (
        module.in_chunks(hidden, weight, targets, dtype, 8, True, True, fused=fused) for fused in (False, True)
    )
    for one, other in zip(plain, fused, strict=True):
        scale = one.abs().max().item()
        torch.testing.assert_close(one, other, rtol=0, atol=4 * UNIT[dtype] * scale + 1e-6 * scale)
