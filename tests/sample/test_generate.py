"""Sampling from a model whose next token is known."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from support.cached_models import CASES, model_of
from torch import Tensor, nn

from lmtrain.sample.choice import Choice, random_numbers
from lmtrain.sample.generate import Continuation, continue_texts, generate


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
    defaults = {"block_size": 4, "vocab_size": 10, "seed": seed}
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
    tokens = generate(model, torch.tensor([1, 2, 3]), 4, block_size=4, vocab_size=10)
    assert len(tokens) == 7
    assert model.lengths == [3, 4, 3, 4]  # goes on from the last half block
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("case", CASES)
def test_the_text_is_the_same_with_and_without_cache_alone_and_in_a_batch(case: str) -> None:
    model = model_of(case)
    prompts = [[3], [5, 6, 7, 1], list(range(50)), [9] * 17, [4, 3, 8]]
    everything = Choice(0.9, 20, 0.95, 0.01, 1.2)
    options: Any = {"block_size": 40, "vocab_size": 45, "device": torch.device("cpu")}
    for choice in (Choice(0.0), Choice(1.0, None), everything):
        found = []
        for cached, batch_size in ((True, 3), (True, 1), (False, 2)):
            texts = [
                Continuation(prompt, random_numbers(7, number, count))
                for number, (prompt, count) in enumerate(zip(prompts, (70, 5, 60, 30, 44), strict=True))
            ]
            continue_texts(model, texts, choice, cached=cached, batch_size=batch_size, **options)
            assert [len(text.ids) for text in texts] == [70, 5, 60, 30, 44]
            found.append([text.ids for text in texts])
        assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cached", [True, False])
def test_a_model_can_be_trained_after_it_wrote_a_text(case: str, cached: bool) -> None:
    model = model_of(case)
    generate(model, torch.tensor([5, 6]), 3, block_size=40, vocab_size=50, cached=cached)
    tokens = torch.arange(12).view(1, -1)
    _, loss = model.train()(tokens, tokens + 1)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
