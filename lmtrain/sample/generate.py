"""Samples tokens from a model."""

import torch
from torch import Tensor, nn

GREEDY_TEMPERATURE = 1e-6  # dividing the logits by a lower temperature may overflow


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
    """Return the prompt followed by `count` sampled token ids, of shape (T + count,).

    The model's train or eval mode and the global random generators stay unchanged.

    Args:
        model: The model to sample from.
        prompt: Token ids (T,), with T ≥ 1.
        count: Number of tokens to sample.
        block_size: Number of preceding tokens that the model sees at most.
        vocab_size: Only ids below this are sampled; a model may have more ids than its tokenizer.
        temperature: Divides the logits; 0 always picks the most likely id.
        top_k: Sample only from this many most likely ids; None means from all.
        generator: Random generator on the CPU; None means torch's global one.
    """
    training = model.training
    model.eval()
    tokens = prompt
    for _ in range(count):
        logits, _ = model(tokens[None, -block_size:])
        logits = logits[0, -1, :vocab_size].float()
        if temperature < GREEDY_TEMPERATURE:
            choice = logits.argmax(keepdim=True)
        else:
            if top_k is not None and top_k < len(logits):
                logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
            # On the CPU, so that a seed gives the same text on every device.
            probabilities = (logits / temperature).softmax(-1).cpu()
            choice = torch.multinomial(probabilities, 1, generator=generator).to(tokens.device)
        tokens = torch.cat((tokens, choice))
    model.train(training)
    return tokens
