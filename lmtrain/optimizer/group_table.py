"""Describes how an optimizer treats the parameters of a model, as a table of its parameter groups."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lmtrain.optimizer.rules import role_of

MOST_ROWS = 12  # an optimizer can have a group for each parameter
NOT_UPDATED = "not updated"
Treatment = tuple[str, float | None, float | None]  # algorithm, factor of the learning rate, weight decay

HEADER = ("algorithm", "roles", "tensors", "parameters", "lr ×", "weight decay")


@dataclass(frozen=True)
class GroupRow:
    """A row of the table: parameters that an optimizer treats alike.

    Attributes:
        algorithm: What updates them: the group's `algorithm`, or else the name of the optimizer's class.
        roles: Their roles, or `all` if the model has no others.
        tensors: How many tensors they are.
        parameters: How many numbers are in them.
        lr_scale: Factor of the schedule's learning rate; None if they are not updated.
        weight_decay: Their weight decay; None if the optimizer has no such value.
    """

    algorithm: str
    roles: Sequence[str]
    tensors: int
    parameters: int
    lr_scale: float | None
    weight_decay: float | None


def group_rows(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    sizes: Mapping[str, int] | None = None,
) -> list[GroupRow]:
    """Return a row for each treatment of the model's parameters, and one for those in no group of the optimizer.

    It works for every optimizer of torch. Groups whose rows would differ in numbers of parameters alone share a row.
    Nothing but shapes is read, so the parameters need no memory. `sizes` says how many numbers a parameter has, if
    an optimizer has only some of its rows.
    """
    named_parameters = list(named_parameters)
    roles = {param: role_of(name, param.ndim) for name, param in named_parameters}
    counts = {param: (sizes or {}).get(name, param.numel()) for name, param in named_parameters}
    groups: list[tuple[Treatment, list[torch.nn.Parameter]]] = [
        (_treatment(group, type(optimizer).__name__), [param for param in group["params"] if param in roles])
        for group in optimizer.param_groups
    ]
    held = {param for _, params in groups for param in params}
    groups.append(((NOT_UPDATED, None, None), [param for param in roles if param not in held]))
    together: dict[Treatment, list[torch.nn.Parameter]] = {}
    for treatment, params in groups:
        together.setdefault(treatment, []).extend(params)
    all_roles = set(roles.values())
    rows = []
    for (algorithm, lr_scale, weight_decay), params in together.items():
        own = tuple(dict.fromkeys(roles[param] for param in params))
        shown = ("all",) if len(own) == len(all_roles) > 1 else own
        count = sum(counts[param] for param in params)
        rows.append(GroupRow(algorithm, shown, len(params), count, lr_scale, weight_decay))
    return [row for row in rows if row.tensors]


def _treatment(group: Mapping[str, Any], class_name: str) -> Treatment:
    decay = group.get("weight_decay")
    return (
        group.get("algorithm", class_name),
        float(group.get("lr_scale", 1.0)),
        None if decay is None else float(decay),
    )


def group_table(rows: Sequence[GroupRow]) -> str:
    """Return the rows as lines of text with a header; text is aligned left and numbers right."""
    cells = [HEADER, *(_cells(row) for row in rows[:MOST_ROWS])]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    if len(rows) > MOST_ROWS:
        rest = rows[MOST_ROWS:]
        tensors, parameters = sum(row.tensors for row in rest), sum(row.parameters for row in rest)
        lines.append(f"and {len(rest)} more groups with {tensors:,} tensors of {parameters:,} parameters")
    return "\n".join(lines)


def _cells(row: GroupRow) -> tuple[str, ...]:
    numbers = ("–" if value is None else f"{value:g}" for value in (row.lr_scale, row.weight_decay))
    return row.algorithm, ", ".join(row.roles), f"{row.tensors:,}", f"{row.parameters:,}", *numbers
