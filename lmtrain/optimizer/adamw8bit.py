"""AdamW whose running means of large matrices are kept in 8 bits."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any

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
    dtype = torch.promote_types(params[0].dtype, torch.float32)
    signed, unsigned = (torch.tensor(dynamic_map(sign), dtype=dtype, device=params[0].device) for sign in (True, False))
    for param, grad, state in zip(params, grads, states, strict=True):
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            for name in ("exp_avg", "exp_avg_sq"):
                state[f"{name}_codes"] = torch.zeros(param.numel(), dtype=torch.uint8, device=param.device)
                state[f"{name}_scales"] = signed.new_zeros(-(-param.numel() // BLOCK))
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


def _from_8_bits(state: State, name: str, values: Tensor, like: Tensor) -> Tensor:
    """Return a running mean in the shape of its parameter, in at least 32 bits."""
    return dequantize(state[f"{name}_codes"], state[f"{name}_scales"], values).view(like.shape)


def _to_8_bits(state: State, name: str, values: Tensor, mean: Tensor, found_inf: Tensor | None) -> None:
    """Keep a running mean, unless the step is bad: codes of the same numbers can differ after a round trip."""
    for kind, new in zip(("codes", "scales"), quantize(mean.flatten(), values), strict=True):
        old = state[f"{name}_{kind}"]
        old.copy_(new if found_inf is None else torch.where(found_inf.bool(), old, new))


def quantize(numbers: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return a code for each number (n,), and a scale for each block of them.

    Args:
        numbers: Numbers (n,).
        values: What the codes stand for, ascending (256,), times the scale of a block.
    """
    blocks = F.pad(numbers.to(values.dtype), (0, -len(numbers) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    relative = blocks / scales.clamp(min=torch.finfo(scales.dtype).tiny)[:, None]
    codes = torch.bucketize(relative, (values[1:] + values[:-1]) / 2, out_int32=True).to(torch.uint8)
    return codes.flatten()[: len(numbers)], scales


def dequantize(codes: Tensor, scales: Tensor, values: Tensor) -> Tensor:
    """Return the numbers (n,) for which codes and scales stand."""
    blocks = F.pad(values[codes.int()], (0, -len(codes) % BLOCK)).view(-1, BLOCK)
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
