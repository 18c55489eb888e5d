"""Every kind of attention agrees with a float64 reference, is causal, and keeps documents apart."""

import itertools
import math
from typing import Any

import pytest
import torch
from support.compiler import NEEDS_A_COMPILER
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lmtrain.model.attention import Attention, AttentionPattern, attend
from lmtrain.model.attention_kind import AttentionKind, AttentionTask, obstacle
from lmtrain.model.document_mask import document_blocks, starts_and_positions, starts_of_windows
from lmtrain.verify.device.numbers.rounding import BFLOAT16, FLOAT32, FLOAT64, TENSOR_FLOAT32, rounding_error

END_OF_TEXT = 0
UNIT = {torch.float64: FLOAT64, torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: 2.0**-11}


def reference(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, window: int | None = None, softcap: float | None = None
) -> Tensor:
    """Return attention as it is defined, with all scores."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    visible = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    if window is not None:
        visible = visible.triu(1 - window)
    if starts is not None:
        visible = visible & (starts.unsqueeze(-1) == starts.unsqueeze(-2)).unsqueeze(1)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores.masked_fill(~visible, -1e30).softmax(-1) @ v  # `rounding_error` cannot change -inf


def tokens_of(rows: int, length: int, share: float = 0.02) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return (torch.rand(rows, length, generator=generator) > share).long()


def inputs(length: int, *, d_head: int = 16, n_head: int = 4, n_kv_head: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, heads, length, d_head) for heads in (n_head, n_kv_head, n_kv_head)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def pattern_of(
    kind: AttentionKind,
    starts: Tensor | None,
    dtype: torch.dtype,
    *,
    d_head: int,
    shape: tuple[int, int],
    device: str,
    window: int | None = None,
    softcap: float | None = None,
) -> AttentionPattern:
    attention = Attention(kind, d_head, 0.0, starts is not None, windows=window is not None, softcap=softcap)
    attention.check(torch.device(device), dtype)
    return attention.pattern(torch.zeros(*shape, 1, dtype=dtype, device=device), starts, training=True, window=window)


def with_gradients(compute: Any, tensors: list[Tensor]) -> list[Tensor]:
    out = compute(*tensors)
    grads = torch.autograd.grad((out * torch.linspace(-1, 1, out.shape[-1]).to(out)).sum(), tensors)
    return [out.detach(), *grads]


def check_against_the_reference(
    kind: AttentionKind,
    dtype: torch.dtype,
    *,
    masked: bool,
    length: int,
    device: str = "cpu",
    window: int | None = None,
    softcap: float | None = None,
    **sizes: int,
) -> None:
    exact = inputs(length, **sizes)
    starts = starts_and_positions(tokens_of(2, length), END_OF_TEXT)[0] if masked else None
    wide = dtype in (torch.float64, torch.float32)
    unit = max(UNIT[dtype], TENSOR_FLOAT32) if device == "cuda" and dtype == torch.float32 else UNIT[dtype]

    def in_float64() -> list[Tensor]:
        return with_gradients(lambda q, k, v: reference(q, k, v, starts, window, softcap), exact)

    with torch.enable_grad():
        expected = in_float64()
        errors = rounding_error(in_float64, length + exact[0].shape[-1] if wide and device == "cpu" else 2, unit)
    ours = [tensor.detach().to(device, dtype).requires_grad_() for tensor in exact]
    on_device = None if starts is None else starts.to(device)
    options = {"device": device, "window": window, "softcap": softcap}
    pattern = pattern_of(kind, on_device, dtype, d_head=exact[0].shape[-1], shape=(2, length), **options)
    for error, one, other in zip(errors, with_gradients(lambda *x: attend(*x, pattern), ours), expected, strict=True):
        torch.testing.assert_close(one.double().cpu(), other, rtol=0, atol=error)


@pytest.mark.parametrize("kind", ["auto", "flash", "math"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("length", "n_kv_head"), [(1, 4), (37, 2), (300, 4), (300, 1)])
def test_attention_on_a_cpu(kind: AttentionKind, dtype: torch.dtype, masked: bool, length: int, n_kv_head: int) -> None:
    check_against_the_reference(kind, dtype, masked=masked, length=length, n_kv_head=n_kv_head)


OPTIONS = [{"window": 1}, {"window": 40}, {"window": 299}, {"softcap": 2.0}, {"window": 40, "softcap": 2.0}]


@pytest.mark.parametrize("kind", ["auto", "flash", "math"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_windows_and_soft_caps_on_a_cpu(kind: AttentionKind, masked: bool, options: dict[str, Any]) -> None:
    if kind == "flash" and "softcap" in options:
        pytest.skip("has no soft-cap")
    check_against_the_reference(kind, torch.float32, masked=masked, length=300, n_kv_head=2, **options)


def assert_isolated(
    pattern: AttentionPattern, starts: Tensor, x: list[Tensor], changed: int, window: int = 2**30
) -> None:
    """Check that a changed key and value reach exactly the later tokens of document and window, to the last bit."""
    with torch.no_grad():
        before = attend(*x, pattern)
        moved = [x[0], *(tensor.clone() for tensor in x[1:])]
        for tensor in moved[1:]:
            tensor[:, :, changed] += 1
        after = attend(*moved, pattern)
    reached = (before != after).any(-1).any(1)  # (B, T)
    time = torch.arange(starts.shape[1], device=starts.device)
    assert torch.equal(reached, (starts <= changed) & (time >= changed) & (time < changed + window))


@pytest.mark.parametrize("kind", ["flash", "math"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("changed", [0, 100, 255, 256, 299])
def test_a_token_reaches_later_tokens_of_its_document_only(kind: AttentionKind, masked: bool, changed: int) -> None:
    starts = starts_and_positions(tokens_of(2, 300), END_OF_TEXT)[0]
    pattern = pattern_of(kind, starts if masked else None, torch.float64, d_head=16, shape=(2, 300), device="cpu")
    assert_isolated(pattern, starts if masked else torch.zeros_like(starts), inputs(300), changed)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("changed", [0, 100, 255, 256, 299])
def test_a_token_reaches_its_window_only(masked: bool, softcap: float | None, changed: int) -> None:
    starts = starts_and_positions(tokens_of(2, 300), END_OF_TEXT)[0]
    options: dict[str, Any] = {"d_head": 16, "shape": (2, 300), "device": "cpu", "window": 30, "softcap": softcap}
    pattern = pattern_of("auto", starts if masked else None, torch.float64, **options)
    assert_isolated(pattern, starts if masked else torch.zeros_like(starts), inputs(300), changed, window=30)


def test_a_window_saves_products() -> None:
    attention = Attention("math", 16, 0.0, documents=False, windows=True)
    x = [torch.zeros(1, 1, 4096, 16) for _ in "qkv"]

    def flops(window: int | None) -> int:
        with FlopCounterMode(display=False) as counter:
            attend(*x, attention.pattern(x[0][:, 0], None, training=True, window=window))
        return counter.get_total_flops()

    assert flops(512) <= flops(None) * 2 * 512 / 4096
    assert attention.pattern(x[0][:, 0], None, training=True, window=4096) == AttentionPattern("math")


def test_masks_of_documents_are_made_once_and_have_the_number_format_of_autocast() -> None:
    starts = starts_and_positions(tokens_of(2, 300), END_OF_TEXT)[0]
    attention = Attention("auto", 16, 0.0, documents=True)
    x = torch.zeros(2, 300, 4)
    with torch.autocast("cpu", torch.bfloat16):
        masks = attention.pattern(x, starts, training=True).masks
    assert [mask.shape for mask in masks] == [(2, 1, 256, 256), (2, 1, 44, 300)]
    assert {mask.dtype for mask in masks} == {torch.bfloat16}
    assert attention.pattern(x, starts, training=True).masks[0].dtype == torch.float32


def test_a_kind_of_a_gpu_is_replaced_outside_training() -> None:
    attention = Attention("cudnn", 16, 0.0, documents=False)
    assert attention.pattern(torch.zeros(1, 3, 4), None, training=False).kind == "flash"
    with pytest.raises(ValueError, match=r"model\.attention=cudnn: needs a CUDA device"):
        attention.pattern(torch.zeros(1, 3, 4), None, training=True)
    with pytest.raises(ValueError, match=r"model\.attention=cudnn: needs a CUDA device"):
        attention.check(torch.device("cpu"), torch.float32)


def test_dropout_acts_only_in_training() -> None:
    attention = Attention("auto", 16, 0.5, documents=False)
    x = torch.zeros(2, 5, 4)
    assert attention.pattern(x, None, training=False) == AttentionPattern("flash", 0.0)
    assert attention.pattern(x, None, training=True) == AttentionPattern("math", 0.5)


@pytest.mark.slow
@NEEDS_A_COMPILER
@pytest.mark.parametrize(("masked", "options"), [(False, {}), (True, {}), (True, OPTIONS[-1])], ids=str)
def test_flex_agrees_with_the_reference(masked: bool, options: dict[str, Any]) -> None:
    """On a CPU it has a forward only."""
    torch._dynamo.reset()
    starts = starts_and_positions(tokens_of(2, 300), END_OF_TEXT)[0]
    own = starts if masked else torch.zeros_like(starts)
    exact = [tensor.detach() for tensor in inputs(300, n_kv_head=2)]
    seen = starts_of_windows(own, options["window"]) if options else own
    pattern = AttentionPattern("flex", blocks=document_blocks(seen), softcap=options.get("softcap"))

    def in_float64() -> list[Tensor]:
        return [reference(*exact, own, **options)]

    with torch.no_grad():
        (error,) = rounding_error(in_float64, 316, FLOAT32)
        ours = attend(*(tensor.float() for tensor in exact), pattern)
    torch.testing.assert_close(ours.double(), in_float64()[0], rtol=0, atol=error)
    torch._dynamo.reset()


GPU_KINDS = ["auto", "math", "efficient", "flash", "cudnn", "flex", "varlen"]
on_a_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
gpu_case = [
    pytest.param(*case, marks=on_a_gpu)
    for case in itertools.product(
        GPU_KINDS, [torch.float32, torch.bfloat16, torch.float16], [False, True], [32, 64, 128], [4, 2]
    )
]


def skip_what_the_device_lacks(kind: Any, dtype: torch.dtype, d_head: int, *, masked: bool, dropout: bool) -> None:
    from lmtrain.model.attention import described

    deterministic = torch.are_deterministic_algorithms_enabled()
    task = AttentionTask(described(torch.device("cuda")), dtype, d_head, masked, dropout, deterministic)
    if kind != "auto" and (problem := obstacle(kind, task)) is not None:
        pytest.skip(problem)


@pytest.mark.parametrize(("kind", "dtype", "masked", "d_head", "n_kv_head"), gpu_case)
def test_attention_on_cuda(kind: AttentionKind, dtype: torch.dtype, masked: bool, d_head: int, n_kv_head: int) -> None:
    skip_what_the_device_lacks(kind, dtype, d_head, masked=masked, dropout=False)
    check_against_the_reference(
        kind, dtype, masked=masked, length=300, device="cuda", d_head=d_head, n_kv_head=n_kv_head
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["auto", "math", "efficient", "flex", "varlen"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_windows_and_soft_caps_on_cuda(kind: AttentionKind, masked: bool, options: dict[str, Any]) -> None:
    skip_what_the_device_lacks(kind, torch.bfloat16, 64, masked=masked, dropout=False)
    if "softcap" in options and kind in ("efficient", "varlen"):
        pytest.skip("has no soft-cap")
    check_against_the_reference(kind, torch.bfloat16, masked=masked, length=300, device="cuda", d_head=64, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", GPU_KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_documents_on_cuda_stay_apart_and_nothing_waits(kind: AttentionKind, masked: bool) -> None:
    skip_what_the_device_lacks(kind, torch.bfloat16, 64, masked=masked, dropout=False)
    starts = starts_and_positions(tokens_of(2, 384).cuda(), END_OF_TEXT)[0]
    x = [tensor.detach().cuda().bfloat16() for tensor in inputs(384, d_head=64)]
    given = starts if masked else None
    attend(*x, pattern_of(kind, given, torch.bfloat16, d_head=64, shape=(2, 384), device="cuda"))  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        pattern = pattern_of(kind, given, torch.bfloat16, d_head=64, shape=(2, 384), device="cuda")
        attend(*x, pattern)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for changed in (0, 127, 128, 300):
        assert_isolated(pattern, starts if masked else torch.zeros_like(starts), x, changed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", GPU_KINDS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_bits_of_attention_on_cuda_repeat(
    kind: AttentionKind, masked: bool, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses deterministic products
    torch.use_deterministic_algorithms(True)
    try:
        skip_what_the_device_lacks(kind, torch.bfloat16, 64, masked=masked, dropout=dropout > 0)
        starts = starts_and_positions(tokens_of(2, 512).cuda(), END_OF_TEXT)[0] if masked else None
        attention = Attention(kind, 64, dropout, documents=masked)
        attention.check(torch.device("cuda"), torch.bfloat16)
        x = [tensor.detach().cuda().bfloat16().requires_grad_() for tensor in inputs(512, d_head=64)]
        pattern = attention.pattern(x[0][:, 0], starts, training=True)
        results = []
        for _ in range(3):
            torch.manual_seed(0)
            results.append(with_gradients(lambda *given: attend(*given, pattern), x))
        for other in results[1:]:
            assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)
