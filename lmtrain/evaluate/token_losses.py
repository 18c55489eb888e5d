"""Computes the loss of every token of a text in overlapping windows, each token once.

Shapes: B windows, T = block_size, N tokens of the text.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmtrain.data.loader import IGNORE
from lmtrain.errors import DataError
from lmtrain.system import System

MAX_LOGITS = 1 << 26  # logits in memory at once: 256 MB in float32

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenStream:
    """The tokens of a text, read piece by piece.

    Attributes:
        name: The name of the text, for messages and tables.
        length: The number of tokens.
        read: Returns the tokens from a first number up to, but not including, a last one.
        end_of_text: The id that ends a document; None if no id does.
        bytes: The UTF-8 bytes of the text; None if they are not known.
        document_bytes: The UTF-8 bytes of each document; None if they are not known.
        starts: The numbers of the tokens that begin a document, where no id marks them; None if they are not known.
    """

    name: str
    length: int
    read: Callable[[int, int], npt.NDArray[np.generic]]
    end_of_text: int | None = None
    bytes: float | None = None
    document_bytes: Floats | None = None
    starts: Integers | None = None


class Window(NamedTuple):
    """Tokens `start` … `stop` - 1 are the inputs; the targets from token `scored` to token `stop` count."""

    start: int
    stop: int
    scored: int


class Scored(NamedTuple):
    """The losses in nats of consecutive tokens, the tokens themselves, and how many tokens the model saw before each.

    `opens` tells for each token whether it begins a document.
    """

    losses: Floats
    contexts: Integers
    opens: npt.NDArray[np.bool_]


def windows(length: int, block_size: int, stride: int) -> Iterator[Window]:
    """Yield the windows in which every token but the first is predicted once.

    A window begins `stride` tokens after the one before. Of its at most `block_size` predictions, those count that no
    window before has made. So each token is predicted from at least block_size - stride + 1 tokens before it, or from
    all of them at the start of the text. With stride = block_size, the windows do not overlap. This is the procedure
    of "Perplexity of fixed-length models" in the documentation of transformers, with windows of block_size + 1 tokens.

    Raises:
        ValueError: stride is not from 1 to block_size.
    """
    if not 1 <= stride <= block_size:
        raise ValueError(f"stride={stride}: must be from 1 to the block size, {block_size}")
    predicted = 0  # number of the last predicted token
    for start in range(0, length - 1, stride):
        stop = min(start + block_size, length - 1)
        yield Window(start, stop, predicted + 1)
        predicted = stop
        if stop == length - 1:
            return


def token_losses(
    model: nn.Module, system: System, stream: TokenStream, *, block_size: int, stride: int, batch_size: int
) -> Iterator[Scored]:
    """Yield the losses of tokens 1 … N - 1, in order, in pieces of a few windows.

    The model must be in evaluation mode. Its logits are widened to at least float32 before the cross-entropy.

    Raises:
        DataError: A token id is not below the model's vocabulary, or the text has fewer than two tokens.
        ValueError: The model returns no logits, or stride is out of range.
    """
    if stream.length < 2:
        raise DataError(f"{stream.name}: has {stream.length} tokens, but a loss needs at least 2")
    vocab_size = getattr(model, "vocab_size", None)
    if vocab_size:
        batch_size = max(1, min(batch_size, MAX_LOGITS // (block_size * vocab_size)))
    batch: list[Window] = []
    for window in windows(stream.length, block_size, stride):
        batch.append(window)
        if len(batch) == batch_size or window.stop == stream.length - 1:
            yield _score(model, system, stream, batch, block_size, vocab_size)
            batch = []


def _score(
    model: nn.Module,
    system: System,
    stream: TokenStream,
    batch: list[Window],
    block_size: int,
    vocab_size: int | None,
) -> Scored:
    first = batch[0].start
    span = stream.read(first, batch[-1].stop + 1).astype(np.int64)
    if vocab_size and span.max(initial=0) >= vocab_size:
        raise DataError(f"{stream.name}: has the token id {span.max()}, but the model knows only {vocab_size:,} ids")
    x = np.zeros((len(batch), block_size), np.int64)
    y = np.full_like(x, IGNORE)
    counted = np.zeros(x.shape, np.bool_)
    for row, (start, stop, scored) in enumerate(batch):
        size = stop - start
        x[row, :size] = span[start - first : stop - first]
        y[row, :size] = span[start - first + 1 : stop - first + 1]
        counted[row, scored - start - 1 : size] = True
    losses = cross_entropies(model, system, torch.from_numpy(x), torch.from_numpy(y))
    contexts = np.broadcast_to(np.arange(1, block_size + 1), x.shape)
    if stream.starts is None:
        opens = x == (-1 if stream.end_of_text is None else stream.end_of_text)
    else:
        opens = np.isin(np.array([[window.start + 1] for window in batch]) + np.arange(block_size), stream.starts)
    return Scored(losses[counted], contexts[counted], opens[counted])


def cross_entropies(model: nn.Module, system: System, x: Tensor, y: Tensor) -> Floats:
    """Return the loss in nats of each target (B, T), 0 where it is IGNORE, for tokens x and targets y (B, T)."""
    logits = logits_of(model, system, x)
    losses = F.cross_entropy(logits.flatten(0, 1), y.to(logits.device).flatten(), reduction="none", ignore_index=IGNORE)
    found: Floats = losses.double().view(y.shape).cpu().numpy()
    return found


def logits_of(model: nn.Module, system: System, x: Tensor) -> Tensor:
    """Return the logits (B, T, V) for tokens (B, T), at least in float32.

    Raises:
        ValueError: The model returns none.
    """
    with torch.no_grad(), system.autocast():
        logits = model(x.to(system.device))[0]
    if logits is None:
        raise ValueError(f"{type(model).__name__}: returns no logits without targets, which single losses need")
    widened: Tensor = logits if logits.dtype == torch.float64 else logits.float()
    return widened
