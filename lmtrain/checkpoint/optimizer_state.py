"""Saves and restores an optimizer's state by parameter name."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from lmtrain.terminal.units import counted

Groups = list[dict[str, Any]]


def optimizer_state(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the optimizer's state as `<parameter>/<key>`: its tensors, and everything else."""
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
    """Restore a state from `optimizer_state`, with its saved dtypes and on the device of each parameter.

    `Optimizer.load_state_dict` would match parameters by position, and cast the moments to the parameter's dtype.

    Raises:
        ValueError: the state has a parameter that the model does not have.
    """
    by_name = dict(named_parameters)
    for path, value in {**plain, **tensors}.items():
        name, _, key = path.rpartition("/")
        if name not in by_name:
            raise ValueError(f"the checkpoint's optimizer has state for {name}, which the model does not have")
        param = by_name[name]
        if isinstance(value, torch.Tensor):
            # A step counter is on the CPU unless the fused kernel needs it on the device.
            fused = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
            value = value.to(param.device if value.ndim or fused else "cpu", copy=True)  # steps change it in place
        optimizer.state[param][key] = value


def group_values(optimizer: torch.optim.Optimizer) -> Groups:
    """Return the values of each parameter group, without its parameters and its learning rate."""
    return [
        {key: value for key, value in group.items() if key not in ("params", "lr")} for group in optimizer.param_groups
    ]


def changed_groups(optimizer: torch.optim.Optimizer, initial: Groups) -> Groups:
    """Return the group values that the optimizer's steps have changed: none for AdamW, some for Prodigy.

    All other values come from the config, which a resume may have been allowed to change.
    """
    return [
        {key: _plain(value) for key, value in group.items() if key not in first or _plain(first[key]) != _plain(value)}
        for group, first in zip(group_values(optimizer), initial, strict=True)
    ]


def load_groups(optimizer: torch.optim.Optimizer, initial: Groups, changed: Groups) -> None:
    """Restore values from `changed_groups`, and set all other values as they were before the first step.

    Raises:
        ValueError: the number of groups differs.
    """
    if len(changed) != len(optimizer.param_groups):
        raise ValueError(
            f"the checkpoint's optimizer has {counted(len(changed), 'parameter group')}, but this one has "
            f"{len(optimizer.param_groups)}"
        )
    for group, first, values in zip(optimizer.param_groups, initial, changed, strict=True):
        for key in group.keys() - first.keys() - {"params", "lr"}:
            del group[key]
        group.update(copy.deepcopy(first))
        for key, value in values.items():
            old = group.get(key)
            group[key] = old.new_tensor(value) if isinstance(old, torch.Tensor) else value


def _plain(value: Any) -> Any:
    """Return a value in the form that JSON gives back."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
