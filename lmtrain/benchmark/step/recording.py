"""Records the matrix products and the attention of a real micro-batch on the device.

`plan` finds them without running anything. But on a GPU it takes another kernel for attention where that needs the same
memory, and products in 16 bits for those in 8.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lmtrain.plan.calls import Call, CallLog, is_attention
from lmtrain.trainer import Trainer


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = CallLog(keep_integers=True)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None or is_attention(func):
            flops = formula(*args, **(kwargs or {}), out_val=out) if formula is not None else 0
            self.log.add(func, args, kwargs or {}, out, flops)
        return out


def record_micro_batch(trainer: Trainer) -> Sequence[Call]:
    """Run a micro-batch, forward and backward, of the model as it is before compilation, and return its calls.

    Raises:
        RuntimeError: an operation can't be recorded, or the memory is too small.
    """
    system, batch = trainer.system, next(trainer.micro_batches)
    recorder = _Recorder()
    try:
        with recorder:
            with system.autocast():
                _, loss = trainer.model(batch.x, batch.y)
            trainer.scaler.scale(loss).backward()
    finally:
        system.zero_gradients(trainer.optimizer)
    return tuple(recorder.log.calls)
