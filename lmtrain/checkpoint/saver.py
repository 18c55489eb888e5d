"""Saves checkpoints during training: the loop waits only for a copy of the state, and a thread writes it."""

import copy
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple, Self

import torch

from lmtrain.checkpoint.files import Checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder, Retention

log = logging.getLogger(__name__)


class _Kind(NamedTuple):
    """The shape, the dtype and the device of a tensor to copy."""

    shape: torch.Size
    dtype: torch.dtype
    is_cuda: bool

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Self:
        return cls(tensor.shape, tensor.dtype, tensor.is_cuda)


class Saver:
    """Writes checkpoints into a folder in the background, one at a time. Leaving its context waits for the last one.

    `before_commit` is called in the background before each save, to flush files that the checkpoint relies on. The
    copy of the state stays allocated for the next save, and takes as much memory as the state.

    Raises:
        Exception: a save in the background failed; the next `check`, `wait` or `save` raises its error.
    """

    def __init__(self, folder: CheckpointFolder, before_commit: Callable[[], None] = lambda: None) -> None:
        self.folder, self._before_commit = folder, before_commit
        self.reserved = False  # whether memory for the copy was asked for
        self._buffers: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def reserve(self, checkpoint: Checkpoint) -> None:
        """Allocate the memory for the copy in the background. Otherwise the first save would wait for it.

        The kernel provides a page only when it is first written, which takes longer than the copy itself.
        """
        self.wait()
        self.reserved = True
        kinds = {  # not the tensors: weights for evaluation exist only for this call
            f"{file}/{name}": _Kind.of(tensor)
            for file, tensors in checkpoint.tensors.items()
            for name, tensor in tensors.items()
        }

        def fill() -> None:
            for key, kind in kinds.items():
                self._buffer(key, kind).zero_()

        self._start(fill)

    def save(self, step: int, checkpoint: Checkpoint, retention: Retention) -> None:
        """Copy the state and return. If the previous save is not finished, wait for it first."""
        self.wait()
        copied, ready = self._copy(checkpoint)

        def write() -> None:
            if ready is not None:
                ready.synchronize()
            self._before_commit()
            self.folder.save(step, copied, retention)

        self._start(write)

    def check(self) -> None:
        """Raise the error of a save that has failed, without waiting."""
        if self._error is not None:
            self.wait()

    def wait(self) -> None:
        """Wait until the last save is finished; raise its error if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as failed:
            if error is None:
                raise
            log.error("also, the last checkpoint could not be saved: %s: %s", type(failed).__name__, failed)

    def _copy(self, checkpoint: Checkpoint) -> tuple[Checkpoint, torch.cuda.Event | None]:
        """Return a copy of the state on the CPU, which is complete once the event has happened."""
        copies: dict[str, dict[str, torch.Tensor]] = {}
        cuda = False
        for file, tensors in checkpoint.tensors.items():
            copies[file] = {}
            for name, tensor in tensors.items():
                buffer = self._buffer(f"{file}/{name}", _Kind.of(tensor))
                copies[file][name] = buffer.copy_(tensor.detach(), non_blocking=True)
                cuda |= tensor.is_cuda
        ready = None
        if cuda:
            # Later steps are queued on the device behind these copies.
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        return replace(checkpoint, tensors=copies, state=copy.deepcopy(checkpoint.state)), ready

    def _buffer(self, key: str, kind: _Kind) -> torch.Tensor:
        """Return host memory for a copy of a tensor; repeated calls return the same memory."""
        buffer = self._buffers.get(key)
        if buffer is None or (buffer.shape, buffer.dtype) != (kind.shape, kind.dtype):
            # Pinned memory lets the device copy while the host continues.
            buffer = torch.empty(kind.shape, dtype=kind.dtype, pin_memory=kind.is_cuda)
            self._buffers[key] = buffer
        return buffer

    def _start(self, work: Callable[[], None]) -> None:
        # A daemon thread, since a second signal must exit at once; a half-written checkpoint does not count.
        self._thread = threading.Thread(target=self._run, args=(work,), name="saver", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
