"""Chooses what a process that shares the model writes into a checkpoint, and what it reads from one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lmtrain.checkpoint.files import Checkpoint
from lmtrain.checkpoint.joined import rows_of, shape_of
from lmtrain.parallel.base import Parallel
from lmtrain.parallel.layout import Layout

Tensors = Mapping[str, torch.Tensor]
OPTIMIZER = "optimizer"  # the file whose tensors are named `<parameter>/<key>`


def part_of(whole: Checkpoint, parallel: Parallel) -> Checkpoint:
    """Return what this process writes of a checkpoint whose tensors are those that it has."""
    layout = parallel.layout
    if layout is None or layout.ranks == 1:
        return whole
    tensors: dict[str, Tensors] = {}
    first_rows: dict[str, int] = {}
    parts = {}
    for file, named in whole.tensors.items():
        own = {}
        for name, tensor in named.items():
            param = _parameter(file, name)
            rows = layout.rows.get(param)
            if file == OPTIMIZER and param in layout.owners:
                own[name] = tensor
            elif rows is not None and tensor.shape == rows.own_shape:
                if rows.count:
                    own[name], first_rows[f"{file}/{name}"] = tensor, rows.first
            elif parallel.world.is_first:
                own[name] = tensor
        if own or parallel.world.is_first:
            tensors[file] = own
            if any(_parameter(file, name) in layout.rows for name in named):
                parts[file] = layout.rank, layout.ranks
    return replace(whole, tensors=tensors, first_rows=first_rows, parts=parts)


def own_tensors(file: str, tensors: Tensors, layout: Layout | None) -> Tensors:
    """Return what this process needs of a file of a checkpoint: its rows, or whole tensors that it updates."""
    if layout is None:
        return tensors
    own = {}
    for name in tensors:
        param = _parameter(file, name)
        rows = layout.rows.get(param)
        if file == OPTIMIZER and param in layout.owners:
            if layout.owners[param] == layout.rank:
                own[name] = tensors[name]
        elif rows is not None and shape_of(tensors, name) == rows.shape:
            own[name] = rows_of(tensors, name, rows.first, rows.count)
        else:
            own[name] = tensors[name]
    return own


def own_values(values: Mapping[str, Any], layout: Layout | None) -> Mapping[str, Any]:
    """Return the values of the optimizer's state that this process needs, named as its tensors."""
    if layout is None:
        return values
    return {
        name: value
        for name, value in values.items()
        if layout.owners.get(_parameter(OPTIMIZER, name), layout.rank) == layout.rank
    }


def load_model(model: nn.Module, tensors: Tensors, parallel: Parallel) -> None:
    """Load the weights of a checkpoint, or those rows that this process has.

    Raises:
        RuntimeError: The model has other tensors.
    """
    if parallel.layout is None:
        model.load_state_dict(dict(tensors))
        return
    expected, own = model.state_dict(), parallel.own(model)
    problems = [f"it has no {name}" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"the model has no {name}" for name in sorted(tensors.keys() - expected.keys())]
    problems += [
        f"{name} has the shape {tuple(shape_of(tensors, name))}, but in the model {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if shape_of(tensors, name) != expected[name].shape
    ]
    if problems:
        raise RuntimeError("; ".join(problems))
    loaded = own_tensors("model", tensors, parallel.layout)
    with torch.no_grad():
        for name, value in expected.items():
            if name in own:
                own[name].copy_(loaded[name])
            elif name not in parallel.layout.rows:  # a buffer; other names of a parameter are the same memory
                value.copy_(loaded[name])


def local_parts(state: Mapping[str, Any], layout: Layout | None) -> Tensors:
    """Return the tensors of a model's state dict, of shared parameters only the rows of this process."""
    if layout is None:
        return state
    return {name: value.to_local() if name in layout.rows else value for name, value in state.items()}


def _parameter(file: str, name: str) -> str:
    return name.rpartition("/")[0] if file == OPTIMIZER else name
