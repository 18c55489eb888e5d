"""AdamW whose running means of large matrices are kept in 8 bits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Interval
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from lmtrain.optimizer.grouped import GroupedOptimizer, State, adamw_update, decay_and_subtract, finite
from lmtrain.optimizer.parameter_groups import parameter_groups
from lmtrain.optimizer.rules import Role

Beta = Annotated[float, Interval(ge=0, lt=1)]

BLOCK = 256  # values that share a scale
# The source keeps embeddings in 32 bits, because their gradients differ most in size.
ALGORITHMS: Mapping[Role, str] = {
    "hidden": "adamw8bit",
    "output": "adamw8bit",
    "embedding": "adamw",
    "vector": "adamw",
}


def adamw8bit(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    betas: tuple[Beta, Beta],
    eps: PositiveFloat,
    rules: list[dict[str, Any]] | None = None,
) -> GroupedOptimizer:
    """Return AdamW whose state takes 2 bytes instead of 8 for each parameter of hidden matrices and the output layer.

    Embeddings and vectors have AdamW's state in 32 bits; `rules: [{role: embedding, algorithm: adamw8bit}]` changes
    that.

    Source: Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (2021), sections 2.1 and 2.2.

    Args:
        named_parameters: The model's parameters; given by lmtrain.
        lr: Peak learning rate; the scheduler sets the learning rate of each step.
        weight_decay: Each step shrinks the weights by the learning rate times this.
        betas: Decay rates of the running means of the gradient and of its square.
        eps: Added to the denominator, against division by zero.
        rules: Other values for some parameters; see `lmtrain.optimizer.rules.Rule`.
    """
    groups = parameter_groups(named_parameters, weight_decay, rules or (), ALGORITHMS)
    algorithms = {"adamw8bit": adamw8bit_update, "adamw": adamw_update}
    return GroupedOptimizer([{**group, "betas": betas, "eps": eps} for group in groups], algorithms, lr)


def adamw8bit_update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[State],
    group: Mapping[str, Any],
    found_inf: Tensor | None,
) -> None:
    """Update by AdamW, one parameter after the other, so that only one has its running means in 32 bits."""
    beta1, beta2 = group["betas"]
    grads, share = finite(grads, found_inf)
    signed, unsigned = codebook(True, params[0]), codebook(False, params[0])
    for param, grad, state in zip(params, grads, states, strict=True):
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            for name in ("exp_avg", "exp_avg_sq"):
                state[f"{name}_codes"] = torch.zeros(param.numel(), dtype=torch.uint8, device=param.device)
                state[f"{name}_scales"] = signed.values.new_zeros(-(-param.numel() // BLOCK))
        state["step"] += share
        step = state["step"].clamp(min=1)  # a bad first step must not divide by zero
        mean = _from_8_bits(state, "exp_avg", signed, param)
        square = _from_8_bits(state, "exp_avg_sq", unsigned, param)
        mean += (1 - beta1) * (grad - mean)
        square += (1 - beta2) * (grad.square() - square)
        _to_8_bits(state, "exp_avg", signed, mean, found_inf)
        _to_8_bits(state, "exp_avg_sq", unsigned, square, found_inf)
        root = (square / (1 - beta2**step)).sqrt_() + group["eps"]
        decay_and_subtract([param], [(mean / (1 - beta1**step)).div_(root).to(param.dtype)], group, share)


@dataclass(frozen=True)
class Codebook:
    """Holds what the 256 codes stand for, and tables to find the nearest one.

    Attributes:
        values: What the codes stand for, ascending (256,), times the scale of a block.
        limits: The largest number of each code (256,).
        first: The code of the least number (65536,) among those that have the same upper 16 bits in float32. No two
            limits have the same upper 16 bits, so that each number has this code or the next one.
    """

    values: Tensor
    limits: Tensor
    first: Tensor


def codebook(signed: bool, like: Tensor) -> Codebook:
    """Return the codes of dynamic quantization, on the device of a tensor and in at least its number format."""
    values = np.array(dynamic_map(signed))
    limits = np.append((values[1:] + values[:-1]) / 2, np.inf)
    dtype = torch.promote_types(like.dtype, torch.float32)
    return Codebook(
        torch.tensor(values, dtype=dtype, device=like.device),
        torch.tensor(limits, dtype=dtype, device=like.device),
        torch.tensor(_first_codes(signed), device=like.device),
    )


@cache
def _first_codes(signed: bool) -> np.ndarray:
    """Return `Codebook.first`."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    negative = upper >= 1 << 31  # the least of negative numbers has the largest bits
    least = np.nan_to_num(np.where(negative, upper | 0xFFFF, upper).view(np.float32))
    values = np.array(dynamic_map(signed))
    limits = (values[1:] + values[:-1]) / 2
    return np.searchsorted(limits, least.astype(np.float64)).astype(np.int32)


def _from_8_bits(state: State, name: str, book: Codebook, like: Tensor) -> Tensor:
    """Return a running mean in the shape of its parameter, in at least 32 bits."""
    return dequantize(state[f"{name}_codes"], state[f"{name}_scales"], book).view(like.shape)


def _to_8_bits(state: State, name: str, book: Codebook, mean: Tensor, found_inf: Tensor | None) -> None:
    """Keep a running mean, unless the step is bad: codes of the same numbers can differ after a round trip."""
    for kind, new in zip(("codes", "scales"), quantize(mean.flatten(), book), strict=True):
        old = state[f"{name}_{kind}"]
        old.copy_(new if found_inf is None else torch.where(found_inf.bool(), old, new))


def quantize(numbers: Tensor, book: Codebook) -> tuple[Tensor, Tensor]:
    """Return the nearest code for each number (n,), and a scale for each block of them."""
    blocks = F.pad(numbers.to(book.values.dtype), (0, -len(numbers) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    relative = (blocks / scales.clamp(min=torch.finfo(scales.dtype).tiny)[:, None]).flatten()[: len(numbers)]
    # torch.bucketize does the same, in fifteen times the time on a CPU.
    codes = book.first.index_select(0, (relative.float().view(torch.int32) >> 16) & 0xFFFF)
    codes += relative > book.limits.index_select(0, codes)
    return codes.to(torch.uint8), scales


def dequantize(codes: Tensor, scales: Tensor, book: Codebook) -> Tensor:
    """Return the numbers (n,) for which codes and scales stand."""
    blocks = F.pad(book.values.index_select(0, codes.int()), (0, -len(codes) % BLOCK)).view(-1, BLOCK)
    return (blocks * scales[:, None]).flatten()[: len(codes)]


@cache
def dynamic_map(signed: bool) -> tuple[float, ...]:
    """Return the 256 values of dynamic quantization, ascending: each power of ten has twice as many as the one below.

    Source: Dettmers et al. (2021), section 2.2: a sign bit (if signed), an exponent in unary, and a linear fraction.
    """
    found = [0.0, 1.0]
    for exponent in range(7):
        count = 2**exponent if signed else 2 ** (exponent + 1)
        for place in range(count):
            value = 10.0 ** (exponent - 6) * (0.1 + 0.9 * (place + 0.5) / count)
            found += [value, -value] if signed else [value]
    return tuple(sorted(found))
