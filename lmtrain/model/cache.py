"""Keeps the keys and values of tokens that a model has seen, so that one more token costs the forward of one token.

A model's forward takes one of two things as its `cache`: a `Prefill` for the first tokens of a row, or a `Step` for one
more token in each of the first rows. Each row has a sequence of its own length, so no row is padded. Row r's token at
place p has the same keys and values as in a forward of the whole sequence, up to rounding.

Shapes: B rows, T time, K key-value heads, D head width, S places.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmtrain.model.attention import Attention, AttentionPattern, attend, capped_attention
from lmtrain.model.document_mask import starts_and_positions

KNOWN_PACKAGES = ("lmtrain.", "torch.")


class CacheUse(Protocol):
    """What a model's forward asks of its `cache`."""

    def starts_and_positions(self, tokens: Tensor, end_of_text: int | None) -> tuple[Tensor | None, Tensor]:
        """Return for tokens (B, T) where their documents start, or None without documents, and positions (B, T)."""

    def patterns(
        self, attention: Attention, x: Tensor, starts: Tensor | None, windows: Sequence[int | None]
    ) -> list[AttentionPattern]:
        """Return a pattern for each layer, which has the given sliding window."""


class KeyValueCache:
    """Holds keys and values of up to `rows` sequences of up to `length` tokens; the memory is taken at the first use.

    Attributes:
        sizes: Number of tokens of each row.
        starts: Where the document of each row's last token starts.
    """

    def __init__(self, rows: int, length: int) -> None:
        self.rows, self.length = rows, length
        self.sizes, self.starts = [0] * rows, [0] * rows
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values (rows, K, S, D) of a layer; `like` (B, K, T, D) has shape, type and device."""
        if number not in self._layers:
            shape = self.rows, like.shape[1], self.length, like.shape[3]
            self._layers[number] = like.new_zeros(shape), like.new_zeros(shape)
        return self._layers[number]

    def move(self, source: int, target: int) -> None:
        """Copy a row over another one, so that the rows in use are the first ones."""
        size = self.sizes[source]
        for part in (part for layer in self._layers.values() for part in layer):
            part[target, :, :size] = part[source, :, :size]
        self.sizes[target], self.starts[target] = size, self.starts[source]


class Prefill:
    """Computes the first tokens (1, T) of a row as in a forward without a cache, and keeps their keys and values."""

    def __init__(self, cache: KeyValueCache, row: int) -> None:
        self.cache, self.row = cache, row

    def starts_and_positions(self, tokens: Tensor, end_of_text: int | None) -> tuple[Tensor | None, Tensor]:
        self.cache.sizes[self.row] = T = tokens.shape[1]
        self.cache.starts[self.row] = 0
        if end_of_text is None:
            return None, torch.arange(T, device=tokens.device)[None]
        starts, positions = starts_and_positions(tokens, end_of_text)
        self.cache.starts[self.row] = int(starts[0, -1])
        return starts, positions

    def patterns(
        self, attention: Attention, x: Tensor, starts: Tensor | None, windows: Sequence[int | None]
    ) -> list[AttentionPattern]:
        made = {window: attention.pattern(x, starts, False, window) for window in {*windows}}
        layers = (_PrefillLayer(self, number) for number in range(len(windows)))
        return [replace(made[window], cache=layer) for window, layer in zip(windows, layers, strict=True)]


class _PrefillLayer:
    def __init__(self, prefill: Prefill, number: int) -> None:
        self.prefill, self.number = prefill, number

    def attend(self, q: Tensor, k: Tensor, v: Tensor, pattern: AttentionPattern) -> Tensor:
        row, T = self.prefill.row, k.shape[2]
        keys, values = self.prefill.cache.layer(self.number, k)
        keys[row, :, :T], values[row, :, :T] = k[0], v[0]
        return attend(q, k, v, replace(pattern, cache=None))


class Step:
    """Computes one more token (B, 1) of each of the first B rows. After the forward, call `finish`."""

    def __init__(self, cache: KeyValueCache, ids: Sequence[int]) -> None:
        self.cache, self.ids = cache, ids
        self.places = cache.sizes[: len(ids)]
        self.starts = cache.starts[: len(ids)]
        self.equal = len({*self.places}) == 1

    def starts_and_positions(self, tokens: Tensor, end_of_text: int | None) -> tuple[Tensor | None, Tensor]:
        if end_of_text is not None:
            rows = zip(self.ids, self.places, self.starts, strict=True)
            self.starts = [place if token == end_of_text else start for token, place, start in rows]
        positions = [place - start for place, start in zip(self.places, self.starts, strict=True)]
        return None, torch.tensor(positions, device=tokens.device)[:, None]

    def patterns(
        self, attention: Attention, x: Tensor, starts: Tensor | None, windows: Sequence[int | None]
    ) -> list[AttentionPattern]:
        reaches = {window: self._reach(window, x) for window in {*windows}}
        index = None
        if not self.equal:
            rows = torch.arange(len(self.ids), device=x.device)
            index = rows, torch.tensor(self.places, device=x.device)
        return [
            AttentionPattern("math", softcap=attention.softcap, cache=_StepLayer(self, number, index, *reaches[window]))
            for number, window in enumerate(windows)
        ]

    def _reach(self, window: int | None, x: Tensor) -> tuple[slice, Tensor | None]:
        """Return the places that some row attends to, and a mask (B, 1, 1, S) unless all rows attend to all of them."""
        rows = zip(self.places, self.starts, strict=True)
        lowest = [start if window is None else max(start, place + 1 - window) for place, start in rows]
        seen = slice(min(lowest), max(self.places) + 1)
        if self.equal and len({*lowest}) == 1:
            return seen, None
        place = torch.arange(seen.start, seen.stop, device=x.device)
        first, last = torch.tensor([lowest, self.places], device=x.device)[:, :, None]
        visible = (first <= place) & (place <= last)  # (B, S)
        mask = torch.zeros(visible.shape, dtype=x.dtype, device=x.device).masked_fill(~visible, -torch.inf)
        return seen, mask[:, None, None]

    def finish(self) -> None:
        """Count the token of each row as seen."""
        for row, (place, start) in enumerate(zip(self.places, self.starts, strict=True)):
            self.cache.sizes[row], self.cache.starts[row] = place + 1, start


class _StepLayer:
    def __init__(
        self, step: Step, number: int, index: tuple[Tensor, Tensor] | None, seen: slice, mask: Tensor | None
    ) -> None:
        self.step, self.number, self.index, self.seen, self.mask = step, number, index, seen, mask

    def attend(self, q: Tensor, k: Tensor, v: Tensor, pattern: AttentionPattern) -> Tensor:
        B = q.shape[0]
        keys, values = self.step.cache.layer(self.number, k)
        if self.index is None:
            place = self.step.places[0]
            keys[:B, :, place], values[:B, :, place] = k[:, :, 0], v[:, :, 0]
        else:
            rows, places = self.index
            keys[rows, :, places], values[rows, :, places] = k[:, :, 0], v[:, :, 0]
        keys, values = keys[:B, :, self.seen], values[:B, :, self.seen]
        mask = None if self.mask is None else self.mask.to(q.dtype)
        grouped = q.shape[1] != keys.shape[1]
        if pattern.softcap is not None:
            mask = q.new_zeros(()) if mask is None else mask
            return capped_attention(q, keys, values, mask, 0.0, grouped, softcap=pattern.softcap)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=grouped)


def can_cache(model: nn.Module) -> bool:
    """Return whether a model's forward takes a cache, and none of its parts can mix tokens unnoticed.

    A part of a user's own, such as an MLP, may look at earlier tokens, of which it would see only the last one.
    """
    known = all(
        kind is object or f"{kind.__module__}.".startswith(KNOWN_PACKAGES)
        for kind in {kind for module in model.modules() for kind in type(module).__mro__}
    )
    return known and "cache" in inspect.signature(type(model).forward).parameters


def places(tokens: Tensor, end_of_text: int | None, cache: CacheUse | None) -> tuple[Tensor | None, Tensor]:
    """Return where documents start, or None without documents, and the positions (B, T); one of both must be given."""
    if cache is not None:
        return cache.starts_and_positions(tokens, end_of_text)
    assert end_of_text is not None
    return starts_and_positions(tokens, end_of_text)
