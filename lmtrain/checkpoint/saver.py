"""Saves while training goes on: the loop pays for a copy of the state, a thread does the rest."""

import copy
import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch

from lmtrain.checkpoint.folder import Checkpoint, CheckpointFolder, Retention

log = logging.getLogger(__name__)


class Saver:
    """Writes checkpoints into a folder, one at a time, in the background; a context manager that ends with the last.

    `before_commit` is called in the background before each save: what a checkpoint counts on has to be on the disk
    first. The copies of the state stay allocated, as much memory again, so that the next save need not ask for it.

    Raises:
        Exception: the error of a save in the background, from the next `check`, `wait` or `save`.
    """

    def __init__(self, folder: CheckpointFolder, before_commit: Callable[[], None] = lambda: None) -> None:
        self.folder, self._before_commit = folder, before_commit
        self._buffers: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def reserve(self, checkpoint: Checkpoint) -> None:
        """Allocate the memory of the copies in the background; without this the first save waits for it.

        To the kernel a page is new until it is written, which takes longer than the copy.
        """
        self.wait()
        shapes = {
            f"{file}/{name}": tensor for file, tensors in checkpoint.tensors.items() for name, tensor in tensors.items()
        }

        def fill() -> None:
            for key, tensor in shapes.items():
                self._buffer(key, tensor).zero_()

        self._start(fill)

    def save(self, step: int, checkpoint: Checkpoint, retention: Retention) -> None:
        """Copy the state and return; wait for the save before this one, if that is not done yet."""
        self.wait()
        copied, ready = self._copy(checkpoint)

        def write() -> None:
            if ready is not None:
                ready.synchronize()
            self._before_commit()
            self.folder.save(step, copied, retention)

        self._start(write)

    def check(self) -> None:
        """Raise the error of a save that has failed; wait for nothing."""
        if self._error is not None:
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is left to save."""
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
            log.error("and the last checkpoint could not be saved: %s: %s", type(failed).__name__, failed)

    def _copy(self, checkpoint: Checkpoint) -> tuple[Checkpoint, torch.cuda.Event | None]:
        """Return the state as it is now, on the CPU, valid once the event has happened."""
        copies: dict[str, dict[str, torch.Tensor]] = {}
        cuda = False
        for file, tensors in checkpoint.tensors.items():
            copies[file] = {}
            for name, tensor in tensors.items():
                copies[file][name] = self._buffer(f"{file}/{name}", tensor).copy_(tensor.detach(), non_blocking=True)
                cuda |= tensor.is_cuda
        ready = None
        if cuda:
            # Steps that come later wait their turn behind these copies.
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        return Checkpoint(copies, copy.deepcopy(checkpoint.state), checkpoint.unchecked), ready

    def _buffer(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return memory on the host for a copy of the tensor, the same each time."""
        buffer = self._buffers.get(key)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            # Pinned memory lets the device copy by itself while the host goes on.
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[key] = buffer
        return buffer

    def _start(self, work: Callable[[], None]) -> None:
        # A daemon, as a second signal leaves at once; what it leaves half written is no checkpoint.
        self._thread = threading.Thread(target=self._run, args=(work,), name="saver", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
