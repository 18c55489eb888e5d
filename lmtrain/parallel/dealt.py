"""Whole tensors for optimizers that need them, where each process has only some rows of every parameter.

Each of these tensors belongs to one process. Before an update it gets all rows of the gradient and of the weights, and
after it everyone gets its own rows back. So the update has the bits of one process, and the work is shared.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lmtrain.parallel.layout import Layout, Rows, rows_of_rank, without_memory


class DealtTensors:
    """Gathers the tensors that belong to this process, and hands their rows back.

    Args:
        group: The processes that share a copy of the model.
        layout: Which of them owns which tensor.
        shapes: The shapes of these tensors, by name.
        local: The rows of this process, by name.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        layout: Layout,
        shapes: Mapping[str, torch.Size],
        local: Mapping[str, nn.Parameter],
    ) -> None:
        self.group, self.layout, self.shapes, self.local = group, layout, shapes, local
        self.own = [name for name in shapes if layout.owners[name] == layout.rank]
        self._gathered: list[str] = []
        # Tensors of other processes have a shape, but nothing that an optimizer could update.
        self.params = {
            name: nn.Parameter(
                without_memory(local[name].detach(), shape)
                if name in self.own
                else torch.empty(shape, dtype=local[name].dtype, device="meta"),
                requires_grad=local[name].requires_grad,
            )
            for name, shape in shapes.items()
        }

    def gather(self, grads: Mapping[str, Tensor]) -> None:
        """Give each parameter of this process all rows of its gradient and its weights, after a backward.

        `grads` has the rows of this process, by name. All processes must call this together, and have the same names.
        """
        self._gathered = [name for name in self.shapes if name in grads]
        wholes = self._to_owners(grads)
        for name, weight in self._to_owners({name: self.local[name].detach() for name in self._gathered}).items():
            self.params[name].data, self.params[name].grad = weight, wholes[name]

    def hand_back(self) -> None:
        """Give all processes their rows of the weights, after an update; all must call this together."""
        self._to_all()
        for name in self.own:
            self.params[name].grad = None
            self.params[name].data = without_memory(self.params[name].detach(), self.shapes[name])
        self._gathered = []

    def _to_owners(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the whole tensors of this process, given the rows that it has of all."""
        wholes: dict[str, Tensor] = {}
        for names in self._by_dtype():
            sent = self._by_owner(names)
            own = sent[self.layout.rank]
            sizes = [[self._numel(name, rank) for name in own] for rank in range(self.layout.ranks)]
            received = self._exchange(
                names,
                [parts[name].reshape(-1) for owned in sent for name in owned],
                [sum(parts[name].numel() for name in owned) for owned in sent],
                [sum(each) for each in sizes],
            )
            pieces: dict[str, list[Tensor]] = {name: [] for name in own}
            for part, numels in zip(received, sizes, strict=True):
                for name, piece in zip(own, torch.split(part, numels), strict=True):
                    pieces[name].append(piece)
            wholes |= {name: torch.cat(each).view(self.shapes[name]) for name, each in pieces.items()}
        return wholes

    def _to_all(self) -> None:
        """Copy to each process's rows what the owners have."""
        for names in self._by_dtype():
            owned = self._by_owner(names)
            own = owned[self.layout.rank]
            ranks = range(self.layout.ranks)
            rows = [[self._rows(name, rank).view_of(self.params[name].detach()) for name in own] for rank in ranks]
            received = self._exchange(
                names,
                [part.reshape(-1) for each in rows for part in each],
                [sum(part.numel() for part in each) for each in rows],
                [sum(self.local[name].numel() for name in each) for each in owned],
            )
            for part, each in zip(received, owned, strict=True):
                for name, piece in zip(
                    each, torch.split(part, [self.local[name].numel() for name in each]), strict=True
                ):
                    self.local[name].detach().copy_(piece.view_as(self.local[name]))

    def _exchange(
        self, names: Sequence[str], parts: Sequence[Tensor], sent: list[int], received: list[int]
    ) -> Sequence[Tensor]:
        """Send numbers of some tensors to all processes, and return those that each of them sent."""
        numbers = torch.cat([self.local[names[0]].new_empty(0), *parts])  # this process may have none to send
        into = numbers.new_empty(sum(received))
        dist.all_to_all_single(into, numbers, received, sent, group=self.group)
        return torch.split(into, received)

    def _by_dtype(self) -> Iterable[list[str]]:
        """Return the names of the tensors that are exchanged, those of the same number format together."""
        found: dict[torch.dtype, list[str]] = defaultdict(list)
        for name in self._gathered:
            found[self.local[name].dtype].append(name)
        return found.values()

    def _by_owner(self, names: Iterable[str]) -> list[list[str]]:
        found: list[list[str]] = [[] for _ in range(self.layout.ranks)]
        for name in names:
            found[self.layout.owners[name]].append(name)
        return found

    def _rows(self, name: str, rank: int) -> Rows:
        return rows_of_rank(self.shapes[name], rank, self.layout.ranks)

    def _numel(self, name: str, rank: int) -> int:
        return self._rows(name, rank).own_shape.numel()
