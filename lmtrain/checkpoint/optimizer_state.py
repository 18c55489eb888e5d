"""Saves and restores an optimizer's state by parameter name."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from lmtrain.terminal.units import counted

Groups = list[dict[str, Any]]

TENSOR = "tensor"  # the only key of a dict that stands for a tensor inside another value


def optimizer_state(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the optimizer's state as `<parameter>/<key>`: its tensors, and everything else.

    A tensor inside a list or a dict, such as those of SOAP, is `<parameter>/<key>.<place>`, and the rest has that
    name in its place.
    """
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {}
    for name, param in named_parameters:
        for key, value in optimizer.state.get(param, {}).items():
            rest = _take_tensors(value, f"{name}/{key}", tensors)
            if not isinstance(value, torch.Tensor):
                plain[f"{name}/{key}"] = rest
    return tensors, plain


def _take_tensors(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Put the tensors in a value into `tensors`, and return the value with their names in their places."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value
        return {TENSOR: path}
    if isinstance(value, list | tuple):
        return [_take_tensors(item, f"{path}.{place}", tensors) for place, item in enumerate(value)]
    if isinstance(value, dict):
        return {key: _take_tensors(item, f"{path}.{key}", tensors) for key, item in value.items()}
    return value


def _put_tensors(value: Any, tensors: Mapping[str, torch.Tensor], unused: dict[str, torch.Tensor]) -> Any:
    """Return a value from `_take_tensors` with its tensors again, and remove them from `unused`."""
    if isinstance(value, list):
        return [_put_tensors(item, tensors, unused) for item in value]
    if isinstance(value, dict):
        if value.keys() == {TENSOR}:
            unused.pop(value[TENSOR], None)
            return tensors[value[TENSOR]]
        return {key: _put_tensors(item, tensors, unused) for key, item in value.items()}
    return value


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
    # A step counter is on the CPU unless the fused kernel needs it on the device.
    fused = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    placed: dict[str, torch.Tensor] = {}
    for path, value in tensors.items():
        param = _parameter_of(path, by_name)
        placed[path] = value.to(param.device if value.ndim or fused else "cpu", copy=True)  # steps change it in place
    unused = dict(placed)
    try:
        rest = {path: _put_tensors(value, placed, unused) for path, value in plain.items()}
    except KeyError as error:
        raise ValueError(f"the checkpoint's optimizer has no tensor {error}") from error
    for path, value in {**rest, **unused}.items():
        optimizer.state[_parameter_of(path, by_name)][path.rpartition("/")[2]] = value


def _parameter_of(path: str, by_name: Mapping[str, torch.nn.Parameter]) -> torch.nn.Parameter:
    name = path.rpartition("/")[0]
    if name not in by_name:
        raise ValueError(f"the checkpoint's optimizer has state for {name}, which the model does not have")
    return by_name[name]


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

    If no values were changed, the groups may be others than those of the checkpoint: a resume may have been allowed to
    change the settings that they come from.

    Raises:
        ValueError: there are changed values, and the number of groups differs.
    """
    if not any(changed):
        changed = [{} for _ in optimizer.param_groups]
    if len(changed) != len(optimizer.param_groups):
        raise ValueError(
            f"the checkpoint's optimizer has {counted(len(changed), 'parameter group')}, but this one has "
            f"{len(optimizer.param_groups)}; give the same optimizer.rules and optimizer.weight_decay as then"
        )
    for group, first, values in zip(optimizer.param_groups, initial, changed, strict=True):
        for key in group.keys() - first.keys() - {"params", "lr"}:
            del group[key]
        group.update(copy.deepcopy(first))
        for key, value in values.items():
            group[key] = _from_plain(value, group["params"][0].device)


def _plain(value: Any) -> Any:
    """Return a value in the form that JSON gives back."""
    if isinstance(value, torch.Tensor):
        return {TENSOR: value.tolist(), "dtype": str(value.dtype).removeprefix("torch."), "device": value.device.type}
    return list(value) if isinstance(value, tuple) else value


def _from_plain(value: Any, device: torch.device) -> Any:
    """Return a value from `_plain` with its tensor again, on the device of the parameters unless it was on the CPU."""
    if isinstance(value, dict) and TENSOR in value:
        dtype = getattr(torch, str(value.get("dtype")), None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"the checkpoint's optimizer has a tensor of the unknown dtype {value.get('dtype')}")
        return torch.tensor(value[TENSOR], dtype=dtype, device="cpu" if value.get("device") == "cpu" else device)
    return value
