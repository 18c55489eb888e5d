"""Optimizers: each takes the model's named parameters and returns a `torch.optim.Optimizer`."""

import logging
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
from annotated_types import Interval
from pydantic import NonNegativeFloat, PositiveFloat

log = logging.getLogger(__name__)

FUSED_DEVICES = ("cuda", "cpu")  # where one kernel updates all parameters

Beta = Annotated[float, Interval(ge=0, lt=1)]


def adamw(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    betas: tuple[Beta, Beta],
    eps: PositiveFloat,
) -> torch.optim.AdamW:
    """AdamW with decoupled decay of the tensors of two or more dimensions alone: matrices and embeddings.

    Norm gains and biases set a scale; pulling them to zero only fights the loss.
    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2.
    """
    params = [param for _, param in named_parameters if param.requires_grad]
    decayed = [param for param in params if param.ndim >= 2]
    undecayed = [param for param in params if param.ndim < 2]
    log.info(
        "%d tensors decayed (%s params), %d not decayed (%s params)",
        len(decayed),
        f"{sum(param.numel() for param in decayed):,}",
        len(undecayed),
        f"{sum(param.numel() for param in undecayed):,}",
    )
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    fused = all(param.device.type in FUSED_DEVICES for param in params)
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=betas, eps=eps, fused=fused)


def optimizer_state(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The optimizer's state by parameter name: tensors as `<parameter>/<key>`, everything else likewise."""
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {}
    for name, param in named_parameters:
        for key, value in optimizer.state.get(param, {}).items():
            (tensors if isinstance(value, torch.Tensor) else plain)[f"{name}/{key}"] = value
    return tensors, plain


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    tensors: Mapping[str, torch.Tensor],
    plain: Mapping[str, Any],
) -> None:
    """Puts back what `optimizer_state` gave, in the dtypes it was saved in, on each parameter's device.

    `Optimizer.load_state_dict` goes by position, and casts the moments to the parameter's dtype.

    Raises:
        ValueError: state of a parameter that the model does not have.
    """
    by_name = dict(named_parameters)
    for path, value in {**plain, **tensors}.items():
        name, _, key = path.rpartition("/")
        if name not in by_name:
            raise ValueError(f"the checkpoint's optimizer has state for {name}, which the model does not have")
        param = by_name[name]
        if isinstance(value, torch.Tensor):
            # A step counter stays on the CPU unless the fused kernel keeps it on the device.
            fused = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
            value = value.to(param.device if value.ndim or fused else "cpu", copy=True)  # a step changes it in place
        optimizer.state[param][key] = value
