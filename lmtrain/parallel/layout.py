"""Says which process of a run has which rows of a parameter, where the processes share the model."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Rows:
    """Some rows of a tensor of this `shape`: `count` of them from the row `first` on."""

    first: int
    count: int
    shape: torch.Size

    @property
    def end(self) -> int:
        """The number of the row after the last one."""
        return self.first + self.count

    @property
    def own_shape(self) -> torch.Size:
        """The shape of these rows alone."""
        return torch.Size([self.count, *self.shape[1:]])

    def view_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a view of these rows of a whole tensor."""
        return tensor[self.first : self.end]


def rows_of_rank(shape: torch.Size, rank: int, ranks: int) -> Rows:
    """Return the rows that a process has of a tensor of this shape: equal shares, as `torch.chunk` makes them."""
    share = -(-shape[0] // ranks)
    first = min(shape[0], rank * share)
    return Rows(first, min(shape[0], first + share) - first, shape)


def dealt_out(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """Return for each name the rank that gets it, so that all ranks get about the same sum of sizes."""
    sums = [0] * ranks
    owners: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):  # the largest first; equal ones in their own order
        owners[name] = sums.index(min(sums))
        sums[owners[name]] += sizes[name]
    return owners


@dataclass(frozen=True)
class Layout:
    """Where the parameters of a model are, which several processes share.

    Attributes:
        rank: The number of this process among those that hold a copy of the model together.
        ranks: Their number. Each of them writes a part of every checkpoint.
        writes: Whether this process does so: those of the first copy do.
        rows: The rows that this process has, by parameter name.
        owners: The rank that updates a parameter, for those that one process updates as a whole.
    """

    rank: int
    ranks: int
    writes: bool
    rows: Mapping[str, Rows]
    owners: Mapping[str, int] = field(default_factory=dict)


def without_memory(like: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return a tensor of a shape that takes no memory, on the device of another one."""
    return like.new_empty(1).expand(shape) if shape else like.new_empty(())
