"""What a model sees of each text: with kept keys and values, or computed again for each token.

Both keep several texts of different lengths, and see the same tokens of each: at most `block_size`. Where a text
becomes longer, the model goes on from its last half block, as if the text began there; positions start at 0 again.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from lmtrain.model.cache import KeyValueCache, Prefill, Step


class Context(Protocol):
    """Gives the logits after the tokens of each text. Texts in use have the first numbers."""

    def start(self, row: int, ids: Sequence[int]) -> Tensor:
        """Begin a text and return the logits (V,) after it."""

    def add(self, ids: Sequence[int]) -> Tensor:
        """Add a token to each of the first texts and return the logits (B, V) after them."""

    def move(self, source: int, target: int) -> None:
        """Replace a text by another one."""


def first_seen(length: int, block_size: int) -> int:
    """Return the first token that the model sees of a text of this length."""
    stride = max(1, block_size // 2)
    return max(0, -(-(length - block_size) // stride)) * stride


class CachedContext:
    """Keeps keys and values, so that a token costs the forward of one token."""

    def __init__(self, model: nn.Module, rows: int, length: int, block_size: int, device: torch.device) -> None:
        self.model, self.block_size, self.device = model, block_size, device
        self.cache = KeyValueCache(rows, min(length, block_size))
        self.texts: list[list[int]] = [[] for _ in range(rows)]

    def start(self, row: int, ids: Sequence[int]) -> Tensor:
        self.texts[row] = [*ids]
        seen = ids[first_seen(len(ids), self.block_size) :]
        logits, _ = self.model(torch.tensor([[*seen]], device=self.device), cache=Prefill(self.cache, row))
        found: Tensor = logits[0, -1]
        return found

    def add(self, ids: Sequence[int]) -> Tensor:
        full = [row for row in range(len(ids)) if self.cache.sizes[row] == self.block_size]
        if full:  # these begin again; they and the others are computed one by one for this token
            return torch.stack([self._add_one(row, token, row in full) for row, token in enumerate(ids)])
        for row, token in enumerate(ids):
            self.texts[row].append(token)
        step = Step(self.cache, ids)
        logits, _ = self.model(torch.tensor(ids, device=self.device)[:, None], cache=step)
        step.finish()
        found: Tensor = logits[:, -1]
        return found

    def _add_one(self, row: int, token: int, again: bool) -> Tensor:
        text = [*self.texts[row], token]
        if again:
            return self.start(row, text)
        seen_before = self.cache.sizes[row]
        self.texts[row] = text
        logits, _ = self.model(
            torch.tensor([text[len(text) - seen_before - 1 :]], device=self.device), cache=Prefill(self.cache, row)
        )
        found: Tensor = logits[0, -1]
        return found

    def move(self, source: int, target: int) -> None:
        self.cache.move(source, target)
        self.texts[target] = self.texts[source]


class PlainContext:
    """Computes all that the model sees again for each token; works with every model."""

    def __init__(self, model: nn.Module, rows: int, block_size: int, device: torch.device) -> None:
        self.model, self.block_size, self.device = model, block_size, device
        self.texts: list[list[int]] = [[] for _ in range(rows)]

    def start(self, row: int, ids: Sequence[int]) -> Tensor:
        self.texts[row] = [*ids]
        return self._after([row])[0]

    def add(self, ids: Sequence[int]) -> Tensor:
        lengths: dict[int, list[int]] = {}
        for row, token in enumerate(ids):
            self.texts[row].append(token)
            lengths.setdefault(len(self.texts[row]), []).append(row)
        # Texts of equal length are computed at once.
        found = {row: logits for rows in lengths.values() for row, logits in zip(rows, self._after(rows), strict=True)}
        return torch.stack([found[row] for row in range(len(ids))])

    def _after(self, rows: Sequence[int]) -> Tensor:
        """Return the logits (B, V) after texts of equal length."""
        first = first_seen(len(self.texts[rows[0]]), self.block_size)
        logits, _ = self.model(torch.tensor([self.texts[row][first:] for row in rows], device=self.device))
        found: Tensor = logits[:, -1]
        return found

    def move(self, source: int, target: int) -> None:
        self.texts[target] = self.texts[source]
