"""The parts of a model that FSDP gathers at once: each block, and everything else as the root."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

# Other optimizers need whole tensors: for matrix products, means of rows and columns, or scales of blocks of numbers.
ELEMENTWISE = tuple(f"lmtrain.optimizer.{name}.{name}" for name in ("adamw", "lion", "schedule_free"))


@dataclass(frozen=True)
class Unit:
    """The shapes of the parameters that are gathered at once."""

    shapes: Sequence[tuple[int, ...]]

    @property
    def numel(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    def local_numel(self, shards: int) -> int:
        """Return the numbers that the first of so many processes keeps: of each tensor, ⌈rows / shards⌉ rows."""
        return sum(-(-shape[0] // shards) * math.prod(shape[1:]) if shape else 1 for shape in self.shapes)

    def padded_numel(self, shards: int) -> int:
        """Return the numbers in a gathered unit: all processes send as many as the first one keeps."""
        return shards * self.local_numel(shards)


@dataclass(frozen=True)
class Units:
    """A model as FSDP divides it."""

    root: Unit
    blocks: Sequence[Unit]

    @property
    def all(self) -> Sequence[Unit]:
        return [self.root, *self.blocks]

    @property
    def numel(self) -> int:
        return sum(unit.numel for unit in self.all)

    @property
    def largest_block(self) -> int:
        """Return the parameters of the largest block; 0 without blocks."""
        return max((unit.numel for unit in self.blocks), default=0)

    def local_numel(self, shards: int) -> int:
        return sum(unit.local_numel(shards) for unit in self.all)

    def padded_numel(self, shards: int) -> int:
        return sum(unit.padded_numel(shards) for unit in self.all)


def units_of(model: nn.Module, blocks_of: Callable[[nn.Module], Sequence[nn.Module]]) -> Units:
    """Return the units of a model, of whose parameters only those that are trained count; its weights are not read."""
    blocks: list[Unit] = []
    seen: set[int] = set()
    for block in blocks_of(model):
        params = [param for param in block.parameters() if id(param) not in seen]
        seen.update(id(param) for param in params)
        blocks.append(Unit([tuple(param.shape) for param in params if param.requires_grad]))
    others = [param for param in model.parameters() if id(param) not in seen]
    return Units(Unit([tuple(param.shape) for param in others if param.requires_grad]), blocks)


def blocks_of(model: nn.Module) -> Sequence[nn.Module]:
    """Return the blocks of a model: the modules of its largest list."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    sizes = {id(each): sum(param.numel() for param in each.parameters()) for each in lists}
    return list(max(lists, key=lambda each: sizes[id(each)], default=()))


def is_elementwise(optimizer: Mapping[str, Any]) -> bool:
    """Return whether an optimizer of the config updates each number by itself, so that any part of a tensor will do."""
    return str(optimizer.get("_target_")) in ELEMENTWISE
