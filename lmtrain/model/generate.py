"""Sampling text from a model."""

import torch
from torch import Tensor, nn

ALWAYS_THE_LIKELIEST = 1e-6  # a temperature below which dividing the logits by it may overflow


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Tensor,
    count: int,
    *,
    block_size: int,
    vocab_size: int,
    temperature: float = 0.8,
    top_k: int | None = 50,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return token ids (T,), T ≥ 1, continued by `count` sampled ones: (T + count,).

    Each is drawn from the `top_k` likeliest of the first `vocab_size` ids (a model may have more than its tokenizer),
    given at most `block_size` tokens before it; `temperature` 0 takes the likeliest. The model's mode and the global
    random generators stay as they are.
    """
    training = model.training
    model.eval()
    tokens = prompt
    for _ in range(count):
        logits, _ = model(tokens[None, -block_size:])
        logits = logits[0, -1, :vocab_size].float()
        if temperature < ALWAYS_THE_LIKELIEST:
            choice = logits.argmax(keepdim=True)
        else:
            if top_k is not None and top_k < len(logits):
                logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
            # On the CPU, so that one seed gives one text on every device.
            probabilities = (logits / temperature).softmax(-1).cpu()
            choice = torch.multinomial(probabilities, 1, generator=generator).to(tokens.device)
        tokens = torch.cat((tokens, choice))
    model.train(training)
    return tokens
