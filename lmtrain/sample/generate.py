"""Samples tokens from a model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from lmtrain.model.cache import can_cache
from lmtrain.sample.choice import Choice, choose, random_numbers
from lmtrain.sample.context import CachedContext, Context, PlainContext

Ending = Literal["length", "end_of_text", "stop"]


@dataclass
class Continuation:
    """A text that is being continued.

    Attributes:
        prompt: Ids of the prompt, at least one.
        numbers: A random number for each token that may follow.
        ids: The ids chosen so far.
        logprobs: For each chosen id, its log probability and those of the likeliest ids, by id, if they were asked for.
        ending: Why it ended; None while it goes on.
    """

    prompt: Sequence[int]
    numbers: Sequence[float]
    ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] = field(default_factory=list)
    ending: Ending | None = None


def continue_texts(
    model: nn.Module,
    texts: Sequence[Continuation],
    choice: Choice,
    *,
    block_size: int,
    vocab_size: int,
    device: torch.device,
    batch_size: int = 1,
    end_of_text: int | None = None,
    cached: bool = True,
    logprobs: int | None = None,
    stops: Callable[[Continuation], bool] = lambda text: False,
) -> None:
    """Continue texts until each has as many tokens as it has random numbers, or ends before.

    A text does not depend on the others that are computed with it, nor on the cache, but for rounding: logits differ in
    their last digits, which changes a choice that is almost exactly between two ids.

    Args:
        model: The model; its train or eval mode and the global random generators stay unchanged.
        texts: The texts, which are changed.
        choice: How each token is chosen.
        block_size: Number of preceding tokens that the model sees at most, see `context.py`.
        vocab_size: Only ids below this are sampled; a model may have more ids than its tokenizer.
        device: Where the model is.
        batch_size: Number of texts to compute at once.
        end_of_text: A text ends with this id; None means it goes on.
        cached: Keep keys and values if the model can do so.
        logprobs: Number of likeliest ids whose log probabilities are kept, besides the chosen one's; None means none.
        stops: Called after each token; says whether the text ends.
    """
    waiting = list(reversed(texts))
    rows = min(batch_size, len(texts))
    longest = max((len(text.prompt) + len(text.numbers) for text in texts), default=0)
    context: Context = PlainContext(model, rows, block_size, device)
    if cached and can_cache(model):
        context = CachedContext(model, rows, longest, block_size, device)
    running: list[Continuation] = []
    # A user's model may keep tensors that it makes here, and tensors of inference mode can't be trained with later.
    mode = torch.inference_mode if isinstance(context, CachedContext) else torch.no_grad
    with _evaluating(model), mode():
        while waiting or running:
            logits = [] if not running else [*context.add([text.ids[-1] for text in running])]
            while waiting and len(running) < rows:
                running.append(text := waiting.pop())
                logits.append(context.start(len(running) - 1, text.prompt))
            _append(running, torch.stack(logits)[:, :vocab_size].float(), choice, logprobs)
            for text in running:
                if text.ids[-1] == end_of_text:
                    text.ending = "end_of_text"
                elif stops(text):
                    text.ending = "stop"
                elif len(text.ids) == len(text.numbers):
                    text.ending = "length"
            for row in reversed(range(len(running))):
                if running[row].ending is not None:
                    last = running.pop()
                    if row < len(running):
                        running[row] = last
                        context.move(len(running), row)


def _append(texts: Sequence[Continuation], logits: Tensor, choice: Choice, logprobs: int | None) -> None:
    """Choose a token for each text from its logits (B, V)."""
    seen = [[*text.prompt, *text.ids] if choice.repetition_penalty != 1 else [] for text in texts]
    chosen = choose(logits, choice, [text.numbers[len(text.ids)] for text in texts], seen)
    if logprobs is not None:
        for text, token, row in zip(texts, chosen, logits.double().log_softmax(-1), strict=True):
            likeliest = row.topk(min(logprobs, len(row)))
            found = dict(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True))
            text.logprobs.append({token: float(row[token])} | found)
    for text, token in zip(texts, chosen, strict=True):
        text.ids.append(token)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def generate(
    model: nn.Module,
    prompt: Tensor,
    count: int,
    *,
    block_size: int,
    vocab_size: int,
    temperature: float = 0.8,
    top_k: int | None = 50,
    seed: int = 0,
    cached: bool = True,
) -> Tensor:
    """Return the prompt (T,) followed by `count` sampled token ids; see `continue_texts` and `Choice`."""
    text = Continuation(prompt.tolist(), random_numbers(seed, 0, count))
    continue_texts(
        model,
        [text],
        Choice(temperature, top_k),
        block_size=block_size,
        vocab_size=vocab_size,
        device=prompt.device,
        cached=cached,
    )
    return torch.cat((prompt, prompt.new_tensor(text.ids)))
