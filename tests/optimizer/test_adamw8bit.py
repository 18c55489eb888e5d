"""AdamW in 8 bits: its numbers, its round trips, and its steps against a reference in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from lmtrain.optimizer.adamw8bit import BLOCK, adamw8bit, dequantize, dynamic_map, quantize


@pytest.mark.parametrize("signed", [True, False])
def test_the_values_are_those_of_the_source(signed):
    values = dynamic_map(signed)
    assert len(values) == 256
    assert list(values) == sorted(set(values))
    assert values[-1] == 1.0
    assert 0.0 in values
    assert min(map(abs, set(values) - {0.0})) == pytest.approx(5.5e-7 if signed else 3.25e-7)
    # The largest power of ten has 64 (signed) or 128 values, between 0.1 and 1.
    assert sum(0.1 < value < 1 for value in values) == (64 if signed else 128)
    assert (min(values) < -0.99) == signed


@pytest.mark.parametrize("count", [1, BLOCK, 3 * BLOCK + 5])
@pytest.mark.parametrize("signed", [True, False])
def test_quantized_numbers_are_the_nearest_values(count, signed):
    values = torch.tensor(dynamic_map(signed), dtype=torch.float64)
    numbers = torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    numbers = numbers if signed else numbers.square()
    codes, scales = quantize(numbers, values)
    assert codes.dtype == torch.uint8
    for block in range(len(scales)):
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        scale = numbers[part].abs().max()
        nearest = (numbers[part, None] / scale - values).abs().argmin(1)
        assert scales[block] == scale
        assert torch.equal(codes[part].long(), nearest)
    back = dequantize(codes, scales, values)
    assert back.shape == numbers.shape
    # Values are at most a 64th of [0.1, 1] apart, so that a number is at most half of that away.
    assert (back - numbers).abs().max() <= 0.9 / 64 / 2 * numbers.abs().max() * (1 + 1e-9)


def test_zeros_stay_zeros():
    values = torch.tensor(dynamic_map(signed=True))
    codes, scales = quantize(torch.zeros(300), values)
    assert torch.equal(dequantize(codes, scales, values), torch.zeros(300))


def test_ten_steps_match_the_algorithm_in_float64():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(20, 30, generator=generator, dtype=torch.float64)
    weight = nn.Parameter(start.clone())
    optimizer = adamw8bit([("hidden.weight", weight)], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    theta = start.numpy().copy()
    m, v = np.zeros(600), np.zeros(600)
    for t in range(1, 11):
        lr = 1e-2 * t / 10
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = torch.randn(20, 30, generator=generator, dtype=torch.float64)
        g = weight.grad.numpy().ravel()
        optimizer.step()
        m = 0.9 * m + 0.1 * g
        v = 0.95 * v + 0.05 * g**2
        update = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
        theta = theta * (1 - lr * 0.1) - lr * update.reshape(20, 30)
        m, v = _in_8_bits(m, signed=True), _in_8_bits(v, signed=False)
        # 0.9^t of a step count in float32 has an error of about t · 2⁻²⁴; the update is at most about 3.
        np.testing.assert_allclose(weight.detach().numpy(), theta, rtol=0, atol=1e-2 * 3 * 20 * 2.0**-24 * t)


def _in_8_bits(numbers, signed):
    """Round numbers to the nearest values, in blocks of 256 that have a scale each."""
    values = np.array(dynamic_map(signed))
    found = np.empty_like(numbers)
    for begin in range(0, len(numbers), 256):
        block = numbers[begin : begin + 256]
        scale = np.abs(block).max()
        found[begin : begin + 256] = scale * values[np.abs(block[:, None] / scale - values).argmin(1)]
    return found


def test_state_takes_two_bytes_for_a_hidden_parameter_and_eight_for_an_embedding():
    named = {"embedding.weight": nn.Parameter(torch.ones(64, 64)), "mlp.weight": nn.Parameter(torch.ones(64, 64))}
    optimizer = adamw8bit(named.items(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    for param in named.values():
        param.grad = torch.ones_like(param)
    optimizer.step()
    sizes = {name: sum(each.nbytes for each in optimizer.state[param].values()) for name, param in named.items()}
    assert sizes == {"embedding.weight": 4 + 8 * 4096, "mlp.weight": 4 + 2 * 4096 + 2 * 4 * 16}
