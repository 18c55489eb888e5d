"""Sampling from a model whose next token is known."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from lmtrain.sample.generate import generate


class Counts(nn.Module):
    """Predicts the last token plus one, then plus two; ids above 9 are outside the tokenizer's vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, None]:
        assert not self.training
        self.lengths.append(tokens.shape[1])
        logits = torch.zeros(*tokens.shape, 12)
        logits.scatter_(-1, ((tokens + 1) % 10)[..., None], 5.0)
        logits.scatter_(-1, ((tokens + 2) % 10)[..., None], 4.0)
        logits[..., 10:] = 100.0  # ids that the tokenizer does not have
        return logits, None


def run(count: int = 30, seed: int = 0, **options: object) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    defaults = {"block_size": 4, "vocab_size": 10, "generator": generator}
    return generate(Counts(), torch.tensor([7]), count, **{**defaults, **options}).tolist()  # type: ignore[arg-type]


def test_temperature_zero_picks_the_most_likely_token() -> None:
    assert run(5, temperature=0) == [7, 8, 9, 0, 1, 2]


def test_top_k_and_vocabulary_limit_the_choice() -> None:
    tokens = run(200, top_k=2, temperature=1.0)
    steps = [(after - before) % 10 for before, after in pairwise(tokens)]
    assert set(steps) == {1, 2}
    share = math.e / (math.e + 1)  # e⁵ / (e⁵ + e⁴) = 0.73
    assert abs(steps.count(1) / 200 - share) < 5 * math.sqrt(share * (1 - share) / 200)  # standard deviations
    assert max(run(500, top_k=None, temperature=5.0)) == 9


def test_the_same_seed_gives_the_same_text() -> None:
    assert run(seed=1) == run(seed=1) != run(seed=2)


def test_the_context_is_limited_and_mode_and_global_generator_stay_unchanged() -> None:
    model = Counts().train()
    state = torch.get_rng_state()
    tokens = generate(model, torch.tensor([1, 2, 3]), 4, block_size=4, vocab_size=10, generator=torch.Generator())
    assert len(tokens) == 7
    assert model.lengths == [3, 4, 4, 4]
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
