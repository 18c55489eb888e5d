"""Computes the loss of a model over batches, and the metrics derived from it."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmtrain.data.loader import Batches, TokenLoader
from lmtrain.data.prefetch import MicroBatch
from lmtrain.errors import DataError
from lmtrain.loop.training_parts import Parts
from lmtrain.parallel.base import Parallel
from lmtrain.system import System

CHECK_BATCHES = 8  # batches of a process between two checks for a request to stop, for which all processes wait

Batch = tuple[Tensor, Tensor]
Request = Callable[[], BaseException | None]


def no_request() -> None:
    """Return that nobody asks to stop."""


def evaluate(
    model: nn.Module,
    forward: Callable[..., Any],
    batches: Iterable[Batch],
    system: System,
    parallel: Parallel | None = None,
    request: Request = no_request,
) -> float:
    """Return the mean loss in nats over all target tokens. The model and torch's random generators stay unchanged.

    The processes of `parallel` share the batches; all of them must have the same ones. Every few batches, all raise
    what `request` returns in any of them.
    """
    parallel = parallel or Parallel()
    total = torch.zeros((), dtype=torch.float64, device=system.device)
    targets = 0
    training = model.training
    model.eval()
    devices = [system.device] if system.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), parallel.collectives():
            for (x, y), counts in parallel.mine(_with_checks(batches, parallel, request)):
                batch = MicroBatch.of(x, y, pin=system.device.type == "cuda").to(system.device)
                if batch.n_targets == 0 and not parallel.computes_without_targets(last=False):
                    continue  # its mean loss would be 0 / 0
                with system.autocast():
                    loss = forward(batch.x, batch.y)[1]  # logits, if there are any, are freed before the next batch
                if batch.n_targets == 0 or not counts:
                    continue
                total += loss.double() * batch.n_targets
                targets += batch.n_targets
    finally:
        model.train(training)
        parallel.free_weights()
    total, all_targets = parallel.sum_float64(torch.stack([total, torch.full_like(total, targets)]))
    return float(total / all_targets)


def _with_checks(batches: Iterable[Batch], parallel: Parallel, request: Request) -> Iterator[Batch]:
    """Yield the batches of all processes; each process passes the same checks, whichever batches it computes.

    Raises:
        DataError: A batch can't be read in one of the processes.
    """
    batches, size, number = iter(batches), parallel.world.size, 0
    while True:
        found: list[Batch] = []
        error: DataError | None = None
        try:
            # Where processes compute together, none may begin a batch that another one can't read.
            found = list(itertools.islice(batches, size if parallel.shares_model else 1))
        except DataError as caught:
            error = caught
        due = size > 1 and (parallel.shares_model or number % (CHECK_BATCHES * size) == 0)
        if error is not None or not found or due:
            parallel.raise_together(error, request() if found and due else None)
        if not found:
            return
        number += len(found)
        yield from found


def perplexity(loss: float) -> float:
    """Return exp(loss), infinity if that is too large for a float, and NaN for NaN."""
    return math.inf if loss >= 700 else math.exp(loss)


def sequences_to_evaluate(loader: TokenLoader, batches: int | None, tokens: int | None) -> int | None:
    """Return how many sequences an evaluation of at most so many batches and tokens reads; None means all."""
    limits = []
    if batches is not None:
        limits.append(batches * loader.batch_size)
    if tokens is not None:
        limits.append(max(1, tokens // loader.block_size))
    return min(limits, default=None)


def read_batches(loader: TokenLoader, sequences: int | None) -> Batches:
    """Yield the batches of so many sequences, or of the whole split; the first file is opened with the first batch."""
    yield from loader.whole_split() if sequences is None else loader.spaced_blocks(sequences)


class Evaluator:
    """Evaluates the model on the validation split, and optionally on the training split.

    `forward` is the model as the trainer calls it, possibly compiled. `sequences` is the number of validation sequences
    (None means the whole split), and `train_sequences` the number of training sequences (0 means none). With several
    processes, `request` may stop an evaluation between two batches. `tasks` returns more metrics of the model.
    """

    def __init__(
        self,
        parts: Parts,
        forward: Callable[..., Any],
        *,
        sequences: int | None,
        train_sequences: int,
        request: Request = no_request,
        tasks: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self.tasks = tasks
        self.model, self.forward, self.system, self.parallel = parts.model, forward, parts.system, parts.parallel
        self.train_loader, self.val_loader = parts.train_loader, parts.val_loader
        self.sequences, self.train_sequences, self.request = sequences, train_sequences, request

    def loss(self, loader: TokenLoader, sequences: int | None) -> float:
        """Return the mean loss in nats per token over so many sequences, or over the whole split if it is None."""
        batches = read_batches(loader, sequences)
        return evaluate(self.model, self.forward, batches, self.system, self.parallel, self.request)

    def metrics(self) -> dict[str, float]:
        """Return `val/loss`, the metrics derived from it, and `train_eval/loss` if it is switched on."""
        loader, loss = self.val_loader, self.loss(self.val_loader, self.sequences)
        metrics = {"val/loss": loss, "val/perplexity": perplexity(loss)}
        if bytes_per_token := loader.bytes_per_token if self.sequences is None else loader.sampled_bytes_per_token:
            metrics["val/bits_per_byte"] = loss / math.log(2) / bytes_per_token
        if self.train_sequences:
            metrics["train_eval/loss"] = self.loss(self.train_loader, self.train_sequences)
        return metrics | dict(self.tasks())
