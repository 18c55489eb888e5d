"""Several processes with a share of the model each, on torch's FSDP2 (`fully_shard`).

A process has some rows of every parameter. The weights of a layer are gathered while the layer is computed, and its
gradients are summed and shared out again. Rajbhandari et al., "ZeRO" (2020), stage 3; several copies of the shared
model are HSDP (Zhao et al., "PyTorch FSDP" (2023), section 3.2.2).
"""

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from lmtrain.parallel.dealt import DealtTensors
from lmtrain.parallel.interface import gloo_on
from lmtrain.parallel.layout import Layout, dealt_out, rows_of_rank
from lmtrain.parallel.peers import Peers
from lmtrain.parallel.several import Several

T = TypeVar("T")

COPY, SHARD = "copy", "shard"  # dimensions of the mesh


class Fsdp(Several):
    """Every process has some rows of each parameter, with their gradients and the optimizer's state.

    Optimizers that treat each number by itself, such as AdamW, update the rows of a process. For others, such as Muon,
    whole tensors are dealt out to the processes (see `lmtrain.parallel.dealt`).

    Args:
        device: The device of this process.
        peers: The connection to the other processes; None for a run of one process.
        timeout_s: Seconds after which a process that does not answer ends the run.
        shards: Processes that hold one copy of the model together; None means all.
        reshard_after_forward: Free the weights of a layer between its forward and its backward.
        reduce_each_micro_batch: Send gradients after each micro-batch, and not after the last one only.
        param_dtype: Number format in which weights are gathered; None means their own.
        reduce_dtype: Number format in which gradients are sent.
    """

    layout: Layout
    shares_model = True

    def __init__(
        self,
        device: torch.device,
        peers: Peers | None,
        *,
        timeout_s: float,
        shards: int | None,
        reshard_after_forward: bool,
        reduce_each_micro_batch: bool,
        param_dtype: torch.dtype | None,
        reduce_dtype: torch.dtype,
    ) -> None:
        size = peers.world.size if peers else 1
        self.shards = shards or size
        self.copies = size // self.shards
        assert self.copies * self.shards == size  # `check_shards` has refused other numbers
        super().__init__(device, peers, timeout_s=timeout_s)
        self.reduce_each_micro_batch, self.param_dtype = reduce_each_micro_batch, param_dtype
        with self.collectives(), gloo_on(self.interface):
            self.mesh = self._mesh()
        self._has_trained = False
        self._initial: dict[str, Tensor] = {}  # of the first process, until the model is split
        self._options: dict[str, Any] = {
            "mesh": self.mesh,
            "reshard_after_forward": reshard_after_forward,
            "mp_policy": MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype),
        }

    def _mesh(self) -> DeviceMesh:
        """Return the groups of processes that share a copy of the model, and of those that have the same rows of it.

        Groups that torch makes by itself would not have the timeout.
        """
        kind = self.device.type
        if self.copies == 1:
            assert dist.group.WORLD is not None
            return DeviceMesh.from_group(dist.group.WORLD, kind, mesh_dim_names=(SHARD,))
        ranks = torch.arange(self.world.size).view(self.copies, self.shards)
        groups = []
        for sets in (ranks.T, ranks):  # every process makes all groups, in the same order
            made = {tuple(each): dist.new_group(each, timeout=self.timeout) for each in sets.tolist()}
            groups.append(next(group for members, group in made.items() if self.world.rank in members))
        return DeviceMesh.from_group(groups, kind, mesh=ranks, mesh_dim_names=(COPY, SHARD))

    def build(self, make: Callable[[], nn.Module]) -> nn.Module:
        with torch.device("meta"):
            model = make()
        if self.world.size == 1 or _has_other_tensors(model):
            return make()
        if self.world.is_first:
            self._initial = _tensors_of(make())
        self.after_first("initial weights", lambda: True)  # which may take long
        return model

    def split(self, model: nn.Module, device: torch.device) -> None:
        self._class_name = type(model).__name__  # torch makes a subclass of it
        without_memory = any(param.is_meta for param in model.parameters())
        if not without_memory:
            model.to(device)
        with self.collectives():
            for layer in layers_of(model):
                fully_shard(layer, **self._options)
            # With all other parameters, which the backward needs as soon as the forward has ended.
            self._root: FSDPModule = fully_shard(model, **{**self._options, "reshard_after_forward": False})
        if without_memory:
            model.to_empty(device=device)
        self._sharded: dict[str, nn.Parameter] = dict(model.named_parameters())
        self._local = {name: _local_part(param) for name, param in self._sharded.items()}
        rank = self.world.rank % self.shards
        self.layout = Layout(
            rank=rank,
            ranks=self.shards,
            writes=self.world.rank < self.shards,
            rows={
                name: rows_of_rank(param.shape, rank, self.shards)
                for name, param in model.named_parameters(remove_duplicate=False)
            },
        )
        if without_memory:
            self._receive_initial(model)

    @torch.no_grad()
    def _receive_initial(self, model: nn.Module) -> None:
        """Fill the model with the weights that the first process has built, one tensor after the other."""
        for name, tensor in _tensors_of(model).items():
            if self.world.is_first:
                whole = self._initial.pop(name).to(self.device).contiguous()
            else:
                whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
            with self.collectives():
                dist.broadcast(whole, 0)
            if name in self._local:
                self._local[name].copy_(self.layout.rows[name].view_of(whole))
            else:
                tensor.copy_(whole)

    def own(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return self._local

    def updated(self, model: nn.Module, whole: Collection[str]) -> dict[str, nn.Parameter]:
        shapes = {name: param.shape for name, param in self._sharded.items() if name in whole}
        owners = dealt_out({name: shape.numel() for name, shape in shapes.items()}, self.shards)
        self.layout = replace(self.layout, owners=owners)
        self._dealt = DealtTensors(self.mesh.get_group(SHARD), self.layout, shapes, self._local)
        return {name: self._dealt.params.get(name, param) for name, param in self._local.items()}

    @contextlib.contextmanager
    def accumulating(self, *, last: bool) -> Iterator[None]:
        self._root.set_requires_gradient_sync(last or self.reduce_each_micro_batch)
        self._root.set_is_last_backward(last)
        if not self._options["reshard_after_forward"]:
            self._root.set_reshard_after_backward(last)  # weights are gathered once in a step
        with self.collectives():
            yield

    def gradients_ready(self) -> None:
        grads = {name: param.grad for name, param in self._sharded.items() if param.grad is not None}
        for name in grads:
            self._sharded[name].grad = None
        rows: dict[str, Tensor] = {name: grad.to_local() for name, grad in grads.items()}  # type: ignore[attr-defined]
        if not self._has_trained:  # torch may lay out its memory in the first forward
            self._has_trained = True
            assert all(_is_same_memory(self._sharded[name], self._local[name]) for name in rows)
        with self.collectives():
            self._dealt.gather({name: grad for name, grad in rows.items() if name in self._dealt.shapes})
        for name, grad in rows.items():
            if name not in self._dealt.shapes:
                self._local[name].grad = grad

    def weights_ready(self) -> None:
        with self.collectives():
            self._dealt.hand_back()

    def clip(self, params: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        params = list(params)
        grads = [param.grad for param in params if param.grad is not None]
        own = nn.utils.get_total_norm(grads).to(self.device, torch.float32)
        # The other copies of the model have the same gradients.
        norms = self._gather(own.reshape(1))[: self.shards]
        norm = torch.linalg.vector_norm(torch.cat(norms)) if len(norms) > 1 else own
        nn.utils.clip_grads_with_norm_(params, max_norm, norm)
        return norm

    def share_overflows(self, found: Iterable[Tensor]) -> None:
        found = list(found)
        overflow = torch.zeros((), device=self.device)
        for each in found:
            overflow = torch.maximum(overflow, each)
        with self.collectives():
            dist.all_reduce(overflow, dist.ReduceOp.MAX)
        for each in found:
            each.copy_(overflow)

    def free_weights(self) -> None:
        for module in self._root.modules():  # type: ignore[attr-defined]
            if isinstance(module, FSDPModule):
                module.reshard()

    def mine(self, items: Iterable[T]) -> Iterator[tuple[T, bool]]:
        items = iter(items)
        while round_of_items := list(itertools.islice(items, self.world.size)):
            has_one = self.world.rank < len(round_of_items)
            yield round_of_items[self.world.rank if has_one else 0], has_one  # all must compute: they share the weights

    def computes_without_targets(self, *, last: bool) -> bool:
        return self.world.size > 1

    def merged(self, values: Mapping[str, T]) -> dict[str, T]:
        if not self.layout.owners:  # all processes have the same
            return dict(values)
        return {key: value for each in self.every(dict(values)) for key, value in each.items()}

    def class_name(self, model: nn.Module) -> str:
        return self._class_name

    def describe(self) -> str:
        copies = f", {self.copies} copies of the model" if self.copies > 1 else ""
        return f"{self.processes} with FSDP{copies}"


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model: the modules in its outermost lists that have parameters."""
    found: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            found += [layer for layer in child if any(True for _ in layer.parameters())]
        else:
            found += layers_of(child)
    return found


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, also those that no checkpoint has."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _has_other_tensors(model: nn.Module) -> bool:
    """Return whether modules have tensors that are neither parameters nor buffers, which could not be filled."""
    return any(isinstance(value, Tensor) for module in model.modules() for value in vars(module).values())


def _is_same_memory(shared: nn.Parameter, local: nn.Parameter) -> bool:
    rows: Tensor = shared.detach().to_local()  # type: ignore[attr-defined]
    return rows.data_ptr() == local.data_ptr()


def _local_part(param: nn.Parameter) -> nn.Parameter:
    """Return the rows of a shared parameter that this process has, in the same memory."""
    local: Tensor = param.detach().to_local()  # type: ignore[attr-defined]
    return nn.Parameter(local, requires_grad=param.requires_grad)
