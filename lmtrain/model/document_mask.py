"""Document masking for every architecture: documents packed into one sequence do not attend to each other.

A stream is `… A's tokens, end of text, B's tokens, end of text, …`. As in llm.c and modded-nanogpt
(`documents = (tokens == end_of_text).cumsum(1)`), the end-of-text id *opens* the document after it: it has position 0
of that document and attends only to itself. So every token is predicted from its own document, and sampling from a
single end-of-text id starts a new document. The first tokens of a window, up to an end of text, are the rest of a
document that began earlier; their positions start at 0, too.

Shapes: B batch, T time.
"""

import torch
from torch import Tensor


def document_opening_id(mask_documents: bool, end_of_text: int | None, vocab_size: int) -> int | None:
    """Return the id that opens a document, or None if documents are not masked.

    Raises:
        ValueError: documents are masked but there is no id, or the id is not in the vocabulary.
    """
    if end_of_text is not None and end_of_text >= vocab_size:
        raise ValueError(f"model.end_of_text={end_of_text}: must be less than model.vocab_size={vocab_size}")
    if mask_documents and end_of_text is None:
        raise ValueError(
            "model.end_of_text=null: model.mask_documents=true needs the id that opens a document; "
            "give model.end_of_text=ID, or use model.mask_documents=false"
        )
    return end_of_text if mask_documents else None


def mask_and_positions(tokens: Tensor, end_of_text: int) -> tuple[Tensor, Tensor]:
    """Return the mask (B, 1, T, T), true where a query attends to a key, and the positions inside documents (B, T).

    The shapes depend only on the shape of `tokens` (B, T), and nothing waits for the device.
    """
    time = torch.arange(tokens.shape[1], device=tokens.device)  # (T,)
    opened = ((tokens == end_of_text) * time).cummax(1).values  # (B, T): where the document began
    mask = (opened.unsqueeze(-1) <= time) & (time <= time.unsqueeze(-1))  # (B, T, T): query, key
    return mask.unsqueeze(1), time - opened
