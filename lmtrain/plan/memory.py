"""A step's memory and FLOPs, found without its memory: the real step runs on tensors that have a shape and no data.

Counted is what the step's own operations request from the allocator, and when they give it back; so nothing here
depends on layers or architectures. What a kernel allocates internally is not seen.
"""

import contextlib
import math
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from lmtrain.plan.cuda_kernels import CudaKernels

KINDS = {  # in the order in which they are shown
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "casts": "weights in 16 bits",
    "activations": "activations",
    "logits": "logits and loss",
    "workspace": "matrix products' workspace",
}
CUDA_BLOCK = 512  # bytes that the caching allocator rounds up to
# Two cuBLAS handles, the forward's thread and the backward's, at the :4096:8 that deterministic runs ask for.
CUDA_WORKSPACE = 2 * 8 * 4096 * 1024
CUDA_CONTEXT = 500_000_000  # the driver's own, kernels loaded; outside of what torch counts

BuildModelAndOptimizer = Callable[[], tuple[nn.Module, torch.optim.Optimizer]]


@dataclass(frozen=True)
class StepSettings:
    """How a step computes: on which device, in which dtype, and in how many micro-batches of which shape."""

    device: str  # cpu or cuda
    dtype: torch.dtype
    micro_batches: int
    batch_size: int
    block_size: int
    grad_clip: float = 1.0


@dataclass(frozen=True)
class Operations:
    """What operations compute and move: of every matrix product its FLOPs and bytes, of all others their bytes.

    A product reads its inputs and writes its result; an operation that has no result writes what it has read. Fused
    attention, a product of its own kind, moves next to nothing for what it computes.
    """

    products: Sequence[tuple[float, int]]
    attention_flops: float
    other_bytes: int


@dataclass(frozen=True)
class StepCost:
    """What a step takes. `peak` is in bytes by kind, at the moment when their sum is largest."""

    peak: Mapping[str, int]
    checkpoint_bytes: int  # what a checkpoint holds: weights, persistent buffers, optimizer state
    micro_batch_flops: float  # as torch counts them: with what fused attention computes again in the backward
    micro_batch_kernels: int  # operations that compute something, each a kernel of its own on an eager device
    logits_shape: tuple[int, ...]
    micro_batch_operations: Operations
    update_operations: Operations  # of clipping and the optimizer, once a step

    @property
    def peak_bytes(self) -> int:
        return sum(self.peak.values())


def simulate(build: BuildModelAndOptimizer, settings: StepSettings) -> StepCost:
    """Run an optimizer step as the trainer does, with its state allocated, in a micro-batch that is not the first.

    `build` makes model and optimizer while tensors are fake.

    Raises:
        Exception: the model's own, if it wants to see data or its operations say nothing of shapes.
    """
    device = torch.device("cpu")  # of the fake tensors; what CUDA does otherwise is put in its place
    as_on_cuda = settings.device == "cuda"
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(FakeTensorMode())
        ledger = stack.enter_context(MemoryLedger(CUDA_BLOCK if as_on_cuda else 1))
        ledger.kind = "weights"
        model, optimizer = build()
        model.train()
        params = [param for param in model.parameters() if param.requires_grad]
        ledger.kind = "activations"
        shape = (settings.batch_size, settings.block_size)
        x = torch.zeros(shape, dtype=torch.int64, device=device)
        ledger.kind = "gradients"
        for param in params:
            param.grad = torch.empty_like(param)
            param.register_post_accumulate_grad_hook(lambda param: ledger.move(param.grad, "gradients"))  # type: ignore[no-untyped-call]
        ledger.kind = "optimizer"
        optimizer.step()
        if settings.micro_batches == 1:
            optimizer.zero_grad(set_to_none=True)
        model_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
        state_bytes = sum(
            tensor.nbytes
            for state in optimizer.state.values()
            for tensor in state.values()
            if isinstance(tensor, Tensor)
        )
        ledger.kind = "activations"
        if as_on_cuda:
            stack.enter_context(CudaKernels())
        autocast = _autocast(settings)
        with autocast(), torch.no_grad():
            logits, loss = model(x, x)
        ledger.logits = tuple(logits.shape)
        ledger.move(logits, "logits")
        if settings.micro_batches == 1:
            del logits  # else the loop still holds those of the micro-batch before
        ledger.start()
        flops = FlopCounterMode(display=False)
        with flops:
            with autocast():
                logits, loss = model(x, x)
            (loss * (1 / settings.micro_batches)).backward()
        kernels, micro_batch_operations = ledger.kernels, ledger.operations()
        ledger.start_operations()
        ledger.kind = "optimizer"
        nn.utils.clip_grad_norm_(params, settings.grad_clip)
        optimizer.step()
        if as_on_cuda:
            ledger.peak["workspace"] = CUDA_WORKSPACE
        return StepCost(
            peak={kind: ledger.peak[kind] for kind in KINDS if ledger.peak[kind]},
            checkpoint_bytes=model_bytes + state_bytes,
            micro_batch_flops=flops.get_total_flops(),
            micro_batch_kernels=kernels,
            logits_shape=tuple(logits.shape),
            micro_batch_operations=micro_batch_operations,
            update_operations=ledger.operations(),
        )


def count_flops(build: Callable[[], nn.Module], batch_size: int, block_size: int) -> float:
    """Return the FLOPs per token of forward and backward: matrix products only, nothing recomputed.

    Attention counts as if it were not causal. For models that do not count their own; see `simulate` for what it
    raises.
    """
    with torch.random.fork_rng(devices=[]), FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):
        model = build()
        x = torch.zeros((batch_size, block_size), dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            model(x, x)[1].backward()
    return float(counter.get_total_flops() / x.numel())


class MemoryLedger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the memory of every storage that an operation makes, by kind, until nothing refers to it."""

    def __init__(self, block: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = "activations"
        self.logits: tuple[int, ...] = (0,)  # their shape
        self.kernels = 0
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._block, self._most = block, 0
        self._live: dict[int, _LedgerEntry] = {}
        self._products: list[tuple[float, int]] = []
        self._attention_flops, self._other_bytes = 0.0, 0

    def start(self) -> None:
        """Start looking for the peak, and counting kernels."""
        self.peak, self._most, self.kernels = Counter(self.now), self.now.total(), 0
        self.start_operations()

    def start_operations(self) -> None:
        """Start counting what is computed and moved."""
        self._products, self._attention_flops, self._other_bytes = [], 0.0, 0

    def operations(self) -> Operations:
        """Return what was computed and moved since `start_operations`."""
        return Operations(tuple(self._products), self._attention_flops, self._other_bytes)

    def move(self, tensor: Tensor | None, kind: str) -> None:
        """Count a tensor as another kind, as when a tensor of the backward becomes a parameter's gradient."""
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
        if func.overloadpacket in flop_registry:
            flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
            if "attention" in func.overloadpacket.__name__:
                self._attention_flops += flops
            else:
                self._products.append((flops, sum(inputs.values()) + written))
        elif is_new or func._schema.is_mutable:
            self._other_bytes += sum(inputs.values()) + (written or sum(inputs.values()))

    def _kind_of(self, func: Any, tensor: Tensor, args: Sequence[Any]) -> str:
        if self.kind == "activations":
            # As a matrix, too, of a row a token.
            if tensor.shape[-1:] == self.logits[-1:] and tensor.numel() == math.prod(self.logits):
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


def _autocast(settings: StepSettings) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    if settings.dtype == torch.float32:
        return contextlib.nullcontext
    return lambda: torch.autocast("cpu", settings.dtype)
