"""Finds a step's memory and FLOPs without that memory, by running the real step on tensors without data.

It counts the memory that the step's operations request from the allocator and free again, so it does not depend on
layers or architectures. Memory that a kernel allocates internally is not counted.
"""

import contextlib
import math
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lmtrain.checkpoint.optimizer_state import optimizer_state
from lmtrain.loop.evaluation_weights import evaluation_weights
from lmtrain.loop.update import decides_on_device, update
from lmtrain.model.loss import chunk_rows
from lmtrain.plan.calls import Call, CallLog, Operations, is_attention
from lmtrain.plan.cuda_kernels import CudaKernels, run_backward
from lmtrain.torch_internals import fake_tensors

KINDS = {  # in the order in which they are shown
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "average": "average of the weights",
    "update": "copies during the update",
    "evaluation": "copies for evaluation",
    "casts": "weights in 16 bits",
    "activations": "activations",
    "logits": "logits and loss",
    "workspace": "workspace of matrix products",
}
CUDA_BLOCK = 512  # bytes; the caching allocator rounds up to multiples of it
# Two cuBLAS handles (one per thread, forward and backward) with the :4096:8 that deterministic runs need.
CUDA_WORKSPACE = 2 * 8 * 4096 * 1024
CUDA_CONTEXT = 500_000_000  # bytes for the driver and loaded kernels, which torch does not count

BuildModelAndOptimizer = Callable[[], tuple[nn.Module, torch.optim.Optimizer]]


@dataclass(frozen=True)
class StepSettings:
    """The device, the dtype, and the number and shape of the micro-batches of a simulated step."""

    device: str  # cpu or cuda
    dtype: torch.dtype
    micro_batches: int
    batch_size: int
    block_size: int
    grad_clip: float = 1.0
    ema_decay: float | None = None


@dataclass(frozen=True)
class StepCost:
    """The cost of an optimizer step.

    Attributes:
        peak: Bytes by kind, at the moment of the step when their sum is largest.
        evaluation: The same while the model is evaluated and saved after the step. Nothing if it is evaluated with the
            weights of training, because that needs less memory than a step.
        checkpoint_bytes: The size of a checkpoint: weights, those for evaluation, persistent buffers, optimizer state.
        micro_batch_flops: FLOPs as torch counts them, including those that fused attention repeats in the backward.
        micro_batch_kernels: The number of operations that compute something; in eager mode, each is a kernel.
        logits_shape: The shape of the model's logits.
        micro_batch_operations: The work of one micro-batch.
        update_operations: The work of clipping and the optimizer, once per step.
        micro_batch_calls: The matrix products and the fused attention of one micro-batch, in the order of execution.
        moments: The largest sum before the update, and that of the update; `peak` is the larger of both.
    """

    peak: Mapping[str, int]
    checkpoint_bytes: int
    micro_batch_flops: float
    micro_batch_kernels: int
    logits_shape: tuple[int, ...]
    micro_batch_operations: Operations
    update_operations: Operations
    micro_batch_calls: Sequence[Call] = ()
    evaluation: Mapping[str, int] = field(default_factory=dict)
    moments: tuple[Mapping[str, int], Mapping[str, int]] = ({}, {})

    @property
    def step_bytes(self) -> int:
        return sum(self.peak.values())

    @property
    def evaluation_bytes(self) -> int:
        return sum(self.evaluation.values())

    @property
    def peak_bytes(self) -> int:
        """Return the bytes that the whole run needs."""
        return max(self.step_bytes, self.evaluation_bytes)


def simulate(build: BuildModelAndOptimizer, settings: StepSettings) -> StepCost:
    """Simulate an optimizer step as the trainer does it, after earlier ones, and an evaluation with other weights.

    Args:
        build: Makes the model and the optimizer; it is called while tensors are fake.
        settings: The device, the dtype and the micro-batches.

    Raises:
        Exception: any error of the model, if it reads data or uses an operation without shape rules.
    """
    as_on_cuda = settings.device == "cuda"  # tensors are on the CPU; `CudaKernels` replaces operations that differ
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(fake_tensors())
        ledger = stack.enter_context(MemoryLedger(CUDA_BLOCK if as_on_cuda else 1))
        ledger.kind = "weights"
        model, optimizer = build()
        model.train()
        params = [param for param in model.parameters() if param.requires_grad]
        ledger.kind = "activations"
        x = torch.zeros((settings.batch_size, settings.block_size), dtype=torch.int64)
        ledger.kind = "gradients"
        for param in params:
            param.grad = torch.empty_like(param)
            param.register_post_accumulate_grad_hook(lambda param: ledger.move(param.grad, "gradients"))  # type: ignore[no-untyped-call]
        ledger.kind = "optimizer"
        _update(optimizer)
        ledger.kind = "average"
        averaged = evaluation_weights(dict(model.named_parameters()), optimizer, settings.ema_decay)
        if settings.micro_batches == 1:
            optimizer.zero_grad(set_to_none=True)
        model_bytes = _bytes(model.state_dict()) + _bytes(averaged.values())
        ledger.kind = "activations"
        stack.enter_context(CudaKernels() if as_on_cuda else contextlib.nullcontext())
        autocast = _autocast(settings)
        with autocast(), torch.no_grad():
            logits, loss = model(x, x)
            ledger.logits = tuple((model(x)[0] if logits is None else logits).shape)
        ledger.move(logits, "logits")
        if settings.micro_batches == 1:
            del logits  # with several micro-batches, the loop still holds the logits of the previous one
        ledger.start()
        with autocast():
            logits, loss = model(x, x)
        run_backward(loss * (1 / settings.micro_batches))
        kernels, micro_batch_operations, calls = ledger.kernels, ledger.operations(), ledger.calls.calls
        computing = ledger.peak_kinds()
        ledger.start()
        ledger.kind = "update"
        nn.utils.clip_grad_norm_(params, settings.grad_clip)
        _update(optimizer)
        state, _ = optimizer_state(optimizer, model.named_parameters())
        moments, update_operations = (computing, ledger.peak_kinds()), ledger.operations()
        del logits, loss
        optimizer.zero_grad(set_to_none=True)
        if averaged.file:
            ledger.start()
            ledger.kind = "evaluation"
            averaged.values()  # for a checkpoint
            with averaged.in_use(), autocast(), torch.no_grad():
                ledger.kind = "activations"
                model.eval()(x, x)
        workspace = {"workspace": CUDA_WORKSPACE} if as_on_cuda else {}
        return StepCost(
            peak=max(moments, key=lambda kinds: sum(kinds.values())) | workspace,
            checkpoint_bytes=model_bytes + _bytes(state),
            micro_batch_flops=micro_batch_operations.flops,
            micro_batch_kernels=kernels,
            logits_shape=ledger.logits,
            micro_batch_operations=micro_batch_operations,
            update_operations=update_operations,
            micro_batch_calls=tuple(calls),
            evaluation=ledger.peak_kinds() | workspace if averaged.file else {},
            moments=(moments[0] | workspace, moments[1] | workspace),
        )


def _update(optimizer: torch.optim.Optimizer) -> None:
    """Update as the trainer does, but without reading whether the step is bad."""
    if decides_on_device(optimizer):
        update(optimizer, torch.amp.GradScaler("cpu", enabled=False), torch.zeros((), dtype=torch.bool))
    else:
        optimizer.step()


class MemoryLedger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, by kind, the memory of every storage that an operation makes, as long as it is referenced."""

    def __init__(self, block: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = "activations"
        self.logits: tuple[int, ...] = (0,)  # the shape of the logits
        self.kernels = 0
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._block, self._most = block, 0
        self._live: dict[int, _LedgerEntry] = {}
        self.calls = CallLog()
        self._products: list[tuple[float, int]] = []
        self._attention_flops, self._other_bytes = 0.0, 0

    def start(self) -> None:
        """Reset the peak and the number of kernels."""
        self.peak, self._most, self.kernels = Counter(self.now), self.now.total(), 0
        self.start_operations()

    def peak_kinds(self) -> dict[str, int]:
        """Return the bytes of each kind at the peak since `start`."""
        return {kind: self.peak[kind] for kind in KINDS if self.peak[kind]}

    def start_operations(self) -> None:
        """Forget all operations."""
        self.calls = CallLog()
        self._products, self._attention_flops, self._other_bytes = [], 0.0, 0

    def operations(self) -> Operations:
        """Return the operations since `start_operations`."""
        return Operations(tuple(self._products), self._attention_flops, self._other_bytes)

    def move(self, tensor: Tensor | None, kind: str) -> None:
        """Count a tensor as another kind, for example when a tensor of the backward becomes a gradient."""
        if tensor is not None and (entry := self._entry(tensor)) and entry.kind != kind:
            self.now[entry.kind] -= entry.size
            self.now[kind] += entry.size
            entry.kind = kind

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        new = [tensor for tensor in tree_leaves(out) if isinstance(tensor, Tensor) and self._entry(tensor) is None]
        for tensor in new:
            self._add(tensor, self._kind_of(func, tensor, args))
        self.kernels += bool(new)  # a view makes no storage
        self._count_operation(func, args, kwargs or {}, out, bool(new))
        return out

    def _count_operation(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, is_new: bool
    ) -> None:
        inputs = {id(leaf): leaf.nbytes for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        written = sum(leaf.nbytes for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        has_formula = func.overloadpacket in flop_registry
        flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out) if has_formula else 0
        if has_formula or is_attention(func):
            self.calls.add(func, args, kwargs, out, flops)
        if has_formula:
            if is_attention(func):
                self._attention_flops += flops
            else:
                self._products.append((flops, sum(inputs.values()) + written))
        elif is_new or func._schema.is_mutable:
            self._other_bytes += sum(inputs.values()) + (written or sum(inputs.values()))

    def _kind_of(self, func: Any, tensor: Tensor, args: Sequence[Any]) -> str:
        if self.kind == "activations":
            # The logits may also be reshaped to a matrix with one row per token, or exist for a chunk of rows only.
            rows = math.prod(self.logits[:-1]), chunk_rows(torch.float32), chunk_rows(torch.bfloat16)
            if tensor.shape[-1:] == self.logits[-1:] and tensor.numel() in [each * self.logits[-1] for each in rows]:
                return "logits"
            made_from = self._entry(args[0]) if args and isinstance(args[0], Tensor) else None
            if func is torch.ops.aten._to_copy.default and made_from is not None and made_from.kind == "weights":
                return "casts"
        return self.kind

    def _entry(self, tensor: Tensor) -> "_LedgerEntry | None":
        storage = tensor.untyped_storage()
        entry = self._live.get(id(storage))
        return entry if entry is not None and entry.storage() is storage else None

    def _add(self, tensor: Tensor, kind: str) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), -(-storage.nbytes() // self._block) * self._block

        def gone(_: object) -> None:
            self.now[self._live.pop(key).kind] -= size

        self._live[key] = _LedgerEntry(weakref.ref(storage, gone), size, kind)
        self.now[kind] += size
        if (total := self.now.total()) > self._most:
            self.peak, self._most = Counter(self.now), total


@dataclass
class _LedgerEntry:
    storage: "weakref.ref[Any]"
    size: int
    kind: str


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _autocast(settings: StepSettings) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    return lambda: torch.autocast("cpu", settings.dtype, enabled=settings.dtype != torch.float32)
