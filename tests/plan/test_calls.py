"""The recorded calls of a step are the matrix products and the attention that one finds by hand."""

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import nn

from lmtrain.model.gpt2 import GPT2
from lmtrain.model.llama import Llama
from lmtrain.optimizer.adamw import adamw
from lmtrain.plan.calls import Call, CallLog, ResultOf
from lmtrain.plan.memory import StepSettings, simulate

B, T, C, F, V, LAYERS, HEADS = 2, 32, 64, 96, 256, 2, 4
ROWS = B * T


def calls_of(make: Callable[[], nn.Module], device: str = "cpu", dtype: torch.dtype = torch.float32) -> Sequence[Call]:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = make()
        return model, adamw(list(model.named_parameters()), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)

    return simulate(build, StepSettings(device, dtype, 1, B, T)).micro_batch_calls


def sizes(calls: Sequence[Call]) -> Counter[tuple[int, int, int]]:
    """Count the matrix products by (rows, inner size, columns)."""
    found: Counter[tuple[int, int, int]] = Counter()
    for call in calls:
        if not call.is_attention:
            first, second = call.layouts[-2:]  # addmm begins with the bias
            found[first.shape[0], first.shape[1], second.shape[1]] += 1
    return found


def products(rows: int, inner: int, columns: int, times: int) -> Counter[tuple[int, int, int]]:
    """Return the product of a linear layer and those of its two gradients."""
    found: Counter[tuple[int, int, int]] = Counter()
    for size in ((rows, inner, columns), (rows, columns, inner), (columns, rows, inner)):
        found[size] += times
    return found


def test_llama() -> None:
    kv_heads = 2
    calls = calls_of(lambda: Llama(V, T, LAYERS, HEADS, kv_heads, C, F))
    kv = C * kv_heads // HEADS
    by_hand = products(ROWS, C, C, 2 * LAYERS)  # q and o
    by_hand += products(ROWS, C, kv, 2 * LAYERS)  # k and v
    by_hand += products(ROWS, C, F, 2 * LAYERS)  # gate and up
    by_hand += products(ROWS, F, C, LAYERS)  # down
    by_hand += products(ROWS, C, V, 1)
    assert _without_chunks(sizes(calls)) == _without_chunks(by_hand)
    flops = sum(2 * rows * inner * columns * times for (rows, inner, columns), times in by_hand.items())
    assert sum(call.flops for call in calls if not call.is_attention) == flops
    assert sum(call.is_attention for call in calls) == 2 * LAYERS


def _without_chunks(found: Counter[tuple[int, int, int]]) -> dict[tuple[int, int, int], int]:
    """Leave out the products with the vocabulary, which may be computed in chunks of rows."""
    return {size: times for size, times in found.items() if V not in size}


def test_gpt2() -> None:
    calls = calls_of(lambda: GPT2(V, T, LAYERS, HEADS, C))
    by_hand = products(ROWS, C, 3 * C, LAYERS) + products(ROWS, C, C, LAYERS)
    by_hand += products(ROWS, C, 4 * C, LAYERS) + products(ROWS, 4 * C, C, LAYERS)
    assert _without_chunks(sizes(calls)) == _without_chunks(by_hand)
    assert {call.name for call in calls if not call.is_attention} == {"mm", "addmm"}


def test_the_backward_of_attention_takes_the_results_of_its_forward() -> None:
    calls = calls_of(lambda: Llama(V, T, LAYERS, HEADS, None, C, F), "cuda", torch.bfloat16)
    forward = {call for call in calls if call.is_attention and "backward" not in call.name}
    backward = {call for call in calls if call.is_attention and "backward" in call.name}
    assert len(forward) == len(backward) == 1  # all layers are equal
    (attention,), (call,) = forward, backward
    results = [value for value in call.args if isinstance(value, ResultOf)]
    assert [result.call for result in results] == [attention] * len(results)
    assert [result.index for result in results][:2] == [0, 1]  # the output and the logarithm of the sums
    assert {layout.dtype for layout in attention.layouts} == {torch.bfloat16}


def test_a_view_of_a_result_is_an_argument_like_any_other() -> None:
    log, aten = CallLog(), torch.ops.aten
    q = torch.zeros(1, 1, 4, 8)
    attention = aten._scaled_dot_product_flash_attention_for_cpu
    out = attention(q, q, q)
    log.add(attention.default, (q, q, q), {}, out, 0)
    log.add(attention.default, (out[0], out[0], out[0][..., :4]), {"scale": [1.0]}, out, 0)
    first, second = log.calls
    assert second.args[:2] == (ResultOf(first, 0), ResultOf(first, 0))
    assert [layout.shape for layout in second.layouts] == [(1, 1, 4, 4)]
    assert second.kwargs == (("scale", (1.0,)),)
