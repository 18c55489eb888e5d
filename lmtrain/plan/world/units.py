"""The parts of a model that FSDP gathers at once: each layer, and everything else as the root."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lmtrain.parallel.layout import dealt_out


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
    layers: Sequence[Unit]

    @property
    def all(self) -> Sequence[Unit]:
        return [self.root, *self.layers]

    @property
    def numel(self) -> int:
        return sum(unit.numel for unit in self.all)

    @property
    def largest_layer(self) -> int:
        """Return the parameters of the largest layer; 0 without layers."""
        return max((unit.numel for unit in self.layers), default=0)

    def local_numel(self, shards: int) -> int:
        return sum(unit.local_numel(shards) for unit in self.all)

    def padded_numel(self, shards: int) -> int:
        return sum(unit.padded_numel(shards) for unit in self.all)


@dataclass(frozen=True)
class WholeTensors:
    """The tensors that an optimizer needs as a whole, and how they are dealt out to the processes of a copy.

    Attributes:
        numel: The numbers in them.
        most: Those of the process that gets most.
    """

    numel: int = 0
    most: int = 0

    @classmethod
    def of(cls, sizes: Mapping[str, int], shards: int) -> "WholeTensors":
        """Deal out tensors, given the numbers in each by name."""
        owners = dealt_out(sizes, shards)
        sums = [0] * shards
        for name, size in sizes.items():
            sums[owners[name]] += size
        return cls(sum(sums), max(sums))


def units_of(model: nn.Module) -> Units:
    """Return the units of a model, of whose parameters only those that are trained count; its weights are not read."""
    from lmtrain.parallel.fsdp import layers_of  # slow to import

    layers: list[Unit] = []
    seen: set[int] = set()
    for layer in layers_of(model):
        params = [param for param in layer.parameters() if id(param) not in seen]
        seen.update(id(param) for param in params)
        layers.append(Unit([tuple(param.shape) for param in params if param.requires_grad]))
    others = [param for param in model.parameters() if id(param) not in seen]
    return Units(Unit([tuple(param.shape) for param in others if param.requires_grad]), layers)
