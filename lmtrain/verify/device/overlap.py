"""Checks that work of the host and the device overlaps: steps, copies of batches, and checkpoints."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lmtrain.checkpoint.files import Checkpoint, load_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder, Retention
from lmtrain.checkpoint.saver import Saver
from lmtrain.data.prefetch import MicroBatch, Prefetcher
from lmtrain.parts import build_loaders
from lmtrain.verify.bit_comparison import tensor_differences
from lmtrain.verify.device.finding import Finding, judged
from lmtrain.verify.device.numbers.precision import FORMATS, missing_format
from lmtrain.verify.device.setting import Setting, fed

WARM_UP, STEPS = 3, 5
BATCHES, AHEAD = 200, 8  # the prefetcher is so many batches ahead
FILL_S = 0.3
SAVES = 3
LOAD_SIZE, LOAD_PRODUCTS = 8192, 200  # keeps an H100 busy for 0.3 s, other GPUs for longer
# Operations whose result the host needs, so that on a GPU it would have to wait for all queued work.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero")


class HostWaitsError(RuntimeError):
    """An operation would make the host wait for a GPU."""


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises HostWaitsError for operations that would wait on a GPU; for a device on which nothing waits."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket.__name__ in WAITING:
            raise HostWaitsError(f"{func.overloadpacket.__name__} would wait for the device")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def waiting_is_an_error(device: torch.device) -> Iterator[None]:
    """Make an operation that waits for the device raise a RuntimeError."""
    if device.type != "cuda":
        with NoWaiting():  # type: ignore[no-untyped-call]
            yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def steps_do_not_wait(setting: Setting) -> Iterator[Finding]:
    """Run steps, and the check for bad steps that follows each of them, with waiting as an error."""
    for number_format in FORMATS:
        if number_format.name == "TensorFloat-32" or missing_format(number_format, setting.device):
            continue
        cfg = setting.small("llama", *number_format.overrides, "system.compile=false", "trainer.spike_zscore=50")
        with fed(setting.trainer(cfg)) as trainer:
            for _ in range(WARM_UP):
                trainer.step()
            list(trainer.monitor.bad_steps(newest=True))
            try:
                with waiting_is_an_error(setting.device):
                    for _ in range(STEPS):
                        trainer.step()
                        list(trainer.monitor.bad_steps(newest=False))
            except RuntimeError as error:
                yield judged(False, f"step {trainer.state.step + 1}: {error}", number_format.name)
            else:
                how = "by torch's sync debug mode" if setting.is_cuda else "by the operations that would wait on a GPU"
                yield judged(True, f"{STEPS} steps without waiting, {how}", number_format.name)


def keep_busy(device: torch.device) -> "torch.cuda.Event | None":
    """Queue work on a GPU for a tenth of a second or more; return an event at its end, or None on a CPU."""
    if device.type != "cuda":
        return None
    a = torch.ones(LOAD_SIZE, LOAD_SIZE, device=device, dtype=torch.float16)
    out = torch.empty_like(a)
    for _ in range(LOAD_PRODUCTS):
        torch.mm(a, a, out=out)
    ended = torch.cuda.Event()  # type: ignore[no-untyped-call]
    ended.record()
    return ended


def batches_arrive(setting: Setting) -> Iterator[Finding]:
    """Take batches from the prefetcher while the device is busy, and compare them afterwards."""
    cfg = setting.small("llama", "data.batch_size=16")
    direct = build_loaders(cfg)[0]
    with Prefetcher(build_loaders(cfg)[0].batch, 0, setting.device) as batches:
        items = [next(batches)]
        time.sleep(FILL_S)  # until the thread is ahead, so that only the copies can take time
        busy = keep_busy(setting.device)
        items += [next(batches) for _ in range(AHEAD)]
        waited = busy is not None and busy.query()  # type: ignore[no-untyped-call]
        items += [next(batches) for _ in range(BATCHES - len(items))]
    wrong = [
        number
        for number, item in enumerate(items)
        for got, expected in zip(item[:2], direct.batch(number), strict=True)
        if got.device.type != setting.device.type or not torch.equal(got.cpu(), expected)
    ]
    result = f"batch {wrong[0]} is wrong" if wrong else f"{BATCHES} batches are right"
    yield judged(not wrong, result, "values", wrong=wrong[:10])
    if setting.is_cuda:
        pinned = MicroBatch.of(*direct.batch(0), pin=True).x.is_pinned()
        yield judged(pinned, f"the memory is {'' if pinned else 'not '}pinned", "pinned memory")
        result = "the host waited for the copies" if waited else "the host did not wait for the copies"
        yield judged(not waited, result, "copies")


def checkpoints_are_of_their_step(setting: Setting) -> Iterator[Finding]:
    """Save in the background while training continues, and compare what was written."""
    cfg = setting.small("llama", "system.compile=false", "model.dropout=0.1")
    folder = CheckpointFolder(setting.folder / "saved-in-background")
    with fed(setting.trainer(cfg)) as trainer, saver_of(folder) as saver:
        trainer.step()
        expected: dict[int, Checkpoint] = {}
        for _ in range(SAVES):
            trainer.step()
            state = trainer.snapshot.take(trainer.state)
            expected[trainer.state.step] = copied(state)
            keep_busy(setting.device)
            saver.save(trainer.state.step, trainer.snapshot.take(trainer.state), Retention(newest=SAVES))
            for _ in range(STEPS):
                trainer.step()
    wrong = []
    for step, before in expected.items():
        written = load_checkpoint(folder.at(step))
        for group, tensors in before.tensors.items():
            if what := tensor_differences(tensors, written.tensors[group]):
                wrong.append(f"step {step}: {group}: {what}")
        if written.state["train"] != before.state["train"]:
            wrong.append(f"step {step}: state.json is of another step")
    result = wrong[0] if wrong else f"{SAVES} checkpoints have the bits of their step, though training went on"
    yield judged(not wrong, result, wrong=wrong)


def saver_of(folder: CheckpointFolder) -> Saver:
    """Return a saver that writes late, so that several steps are done before."""
    return Saver(folder, before_commit=lambda: time.sleep(0.2))


def copied(checkpoint: Checkpoint) -> Checkpoint:
    """Return a copy on the CPU, for which the host waits."""
    tensors = {
        group: {name: tensor.detach().to("cpu", copy=True) for name, tensor in each.items()}
        for group, each in checkpoint.tensors.items()
    }
    return Checkpoint(tensors, {**checkpoint.state, "train": {**checkpoint.state["train"]}}, checkpoint.unchecked)
