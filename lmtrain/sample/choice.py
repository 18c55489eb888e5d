"""The choice of a next token: settings, and a function of the logits and one random number.

Shapes: B texts, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

GREEDY_TEMPERATURE = 1e-6  # dividing the logits by a lower temperature may overflow


@dataclass(frozen=True)
class Choice:
    """Says how the next token is chosen.

    Attributes:
        temperature: Divides the logits; 0 always picks the likeliest id.
        top_k: Choose among this many likeliest ids; None or 0 means all.
        top_p: Choose among the fewest likeliest ids that have this probability together.
        min_p: Leave out ids less likely than this share of the likeliest one's probability.
        repetition_penalty: Above 1, ids that the text already has become less likely (CTRL, Keskar et al. 2019).

    Raises:
        ValueError: A number is out of range.
    """

    temperature: float = 0.8
    top_k: int | None = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        limits = {
            "temperature": (0, math.inf, "of at least 0"),
            "top_p": (math.ulp(0.0), 1, "above 0 and at most 1"),
            "min_p": (0, 1, "from 0 to 1"),
            "repetition_penalty": (math.ulp(0.0), math.inf, "above 0"),
        }
        for name, (least, most, words) in limits.items():
            value = getattr(self, name)
            if not least <= value <= most or math.isinf(value):
                raise ValueError(f"{name}={value}: must be a number {words}")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: must be a number of at least 0")

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_TEMPERATURE


def random_numbers(seed: int, text: int, count: int) -> list[float]:
    """Return a number in [0, 1) for each token of a text; they depend on nothing but the arguments."""
    raw = np.random.Philox(np.random.SeedSequence([seed, text])).random_raw(count)
    return [float(number) for number in (raw >> np.uint64(11)) * 2.0**-53]


def choose(logits: Tensor, choice: Choice, numbers: Sequence[float], seen: Sequence[Sequence[int]]) -> list[int]:
    """Return the next id of each text.

    The ids that remain are laid side by side in the order of their numbers, each as wide as its probability, and the
    random number points at one. Rounding of the logits changes the choice only if it moves an edge past that number,
    whatever the order of nearly equal probabilities.

    Args:
        logits: Logits (B, V) of the ids that may be chosen.
        choice: How to choose.
        numbers: One number in [0, 1) for each text.
        seen: The ids of each text, for the penalty.
    """
    if choice.repetition_penalty != 1:
        logits = logits.clone()
        for row, text in zip(logits, seen, strict=True):
            places = torch.tensor(
                [token for token in {*text} if token < logits.shape[-1]], dtype=torch.int64, device=logits.device
            )
            scores = row[places]
            row[places] = torch.where(
                scores < 0, scores * choice.repetition_penalty, scores / choice.repetition_penalty
            )
    if choice.greedy:
        found: list[int] = logits.argmax(-1).tolist()
        return found
    V = logits.shape[-1]
    cuts = choice.top_p < 1 or choice.min_p > 0
    ids: Tensor | None
    if choice.top_k and choice.top_k < V:
        values, ids = logits.topk(choice.top_k, dim=-1)  # sorted from the likeliest
    elif cuts:
        values, ids = logits.sort(dim=-1, descending=True)
    else:
        values, ids = logits, None
    # On the CPU in float64, so that a seed gives the same text on every device.
    weights = (values.double().cpu() / choice.temperature).softmax(-1)
    if choice.top_p < 1:
        before = weights.cumsum(-1) - weights
        weights = weights.masked_fill(before >= choice.top_p, 0.0)
    if choice.min_p > 0:
        weights = weights.masked_fill(weights < choice.min_p * weights[:, :1], 0.0)
    if ids is not None:
        ids, order = ids.cpu().sort(dim=-1)
        weights = weights.gather(-1, order)
    edges = weights.cumsum(-1)
    points = torch.tensor(numbers, dtype=torch.float64)[:, None] * edges[:, -1:]
    chosen = torch.searchsorted(edges, points, right=True).clamp(max=edges.shape[-1] - 1)
    picked: list[int] = (chosen if ids is None else ids.gather(-1, chosen))[:, 0].tolist()
    return picked
