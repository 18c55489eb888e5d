"""Batch size and sequence length of each optimizer step: pure functions of the tokens that the run has trained on."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import MinLen
from pydantic import NonNegativeInt, PositiveInt

# Pairs of tokens and the number that holds from there on, with increasing tokens; `config` checks their order.
TokenPoints = Annotated[list[tuple[NonNegativeInt, PositiveInt]], MinLen(1)]


def value_at(points: Sequence[tuple[int, int]], tokens: int, before: int) -> int:
    """Return the number that holds after so many tokens; before the first point it is `before`."""
    at = bisect_right(points, tokens, key=lambda point: point[0])
    return points[at - 1][1] if at else before


@dataclass(frozen=True)
class BatchSizes:
    """The sequences of each optimizer step. A step that crosses a point has the size that holds at its start.

    Attributes:
        sequences: Sequences per step before the first point, or always without points.
        block_size: Tokens per sequence.
        points: Pairs of tokens and the sequences per step from there on.
    """

    sequences: int
    block_size: int
    points: Sequence[tuple[int, int]] = ()

    def at(self, tokens: int) -> int:
        """Return the sequences of the step that starts after so many tokens."""
        return value_at(self.points, tokens, self.sequences)

    def tokens(self, steps: int, before: int = 0) -> int:
        """Return the tokens of so many steps, of which the first starts after `before` tokens."""
        total = 0
        for step_tokens, most in self._phases(before):
            here = int(min(steps, most))
            total, steps = total + here * step_tokens, steps - here
            if steps <= 0:
                break
        return total

    def steps(self, tokens: int, before: int = 0) -> float:
        """Return how many steps so many tokens are, of which the first step starts after `before` tokens."""
        total = 0.0
        for step_tokens, most in self._phases(before):
            here = min(tokens / step_tokens, most)
            if here < most:
                return total + here
            total, tokens = total + here, tokens - int(here) * step_tokens
        return total

    def range(self, steps: int, before: int = 0) -> tuple[int, int]:
        """Return the smallest and the largest number of tokens in a step, among so many steps after `before` tokens."""
        sizes = []
        for step_tokens, most in self._phases(before):
            sizes.append(step_tokens)
            steps -= int(min(steps, most))
            if steps <= 0:
                break
        return min(sizes), max(sizes)

    def _phases(self, before: int) -> Iterator[tuple[int, float]]:
        """Yield the tokens of a step and the number of such steps, one phase after the other; the last never ends."""
        now = before
        while True:
            step_tokens = self.at(now) * self.block_size
            following = bisect_right(self.points, now, key=lambda point: point[0])
            if following == len(self.points):
                yield step_tokens, math.inf
                return
            steps = -(-(self.points[following][0] - now) // step_tokens)
            yield step_tokens, steps
            now += steps * step_tokens
