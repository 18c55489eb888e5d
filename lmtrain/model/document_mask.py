"""Document masking for every architecture: documents packed into one sequence do not attend to each other.

A stream is `… A's tokens, end of text, B's tokens, end of text, …`. As in llm.c and modded-nanogpt
(`documents = (tokens == end_of_text).cumsum(1)`), the end-of-text id *opens* the document after it: it has position 0
of that document and attends only to itself. So every token is predicted from its own document, and sampling from a
single end-of-text id starts a new document. The first tokens of a window, up to an end of text, are the rest of a
document that began earlier; their positions start at 0, too.

A kernel takes the documents in one of three forms, which are made from the starts once for all layers. The shapes of
all of them depend only on the shape of the tokens, and nothing waits for the device.

Shapes: B batch, T time, N blocks of queries or keys.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# Queries that share a mask, and most chunks of a sequence. A chunk of queries is not multiplied with later keys, which
# saves up to half of the work. On a CPU, 256 queries took 0.77 to 0.96 of the time of one T × T mask, 64 took 1.1.
CHUNK_QUERIES, MOST_CHUNKS = 256, 8
BLOCK = 128  # queries and keys in a block of flex_attention's kernels


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


def starts_and_positions(tokens: Tensor, end_of_text: int) -> tuple[Tensor, Tensor]:
    """Return for each token (B, T) the place where its document starts in the window, and its position inside it."""
    time = torch.arange(tokens.shape[1], device=tokens.device)  # (T,)
    starts = ((tokens == end_of_text) * time).cummax(1).values  # (B, T)
    return starts, time - starts


def starts_of_windows(starts: Tensor, window: int) -> Tensor:
    """Return the first token (B, T) that each token attends to, if that may be the last of `window` tokens.

    So every form of documents below can also have a sliding window.
    """
    return starts.maximum(torch.arange(1 - window, starts.shape[1] + 1 - window, device=starts.device))


def chunks_of_queries(length: int, window: int | None = None) -> list[slice]:
    """Return the chunks into which `mask_chunks` cuts the queries of a sequence.

    With a window, about half of the keys of a chunk are outside the window of a query, or fewer.
    """
    size = max(CHUNK_QUERIES, min(-(-length // MOST_CHUNKS), window or length))
    return [slice(begin, min(begin + size, length)) for begin in range(0, length, size)]


def mask_chunks(starts: Tensor, dtype: torch.dtype, window: int | None = None) -> tuple[Tensor, ...]:
    """Return a mask (B, 1, queries, keys) for each chunk of queries.

    The keys end with the chunk. They begin with the sequence, or with the window of the chunk's first query. The mask
    is 0 where a query attends to a key, and -inf elsewhere. A boolean mask would be converted to this again in every
    layer, and each layer would keep its own for the backward.
    """
    time = torch.arange(starts.shape[1], device=starts.device)
    masks = []
    for chunk in chunks_of_queries(starts.shape[1], window):
        first = 0 if window is None else max(0, chunk.start + 1 - window)
        query, key = time[chunk, None], time[first : chunk.stop]
        visible = (starts[:, chunk, None] <= key) & (key <= query)  # (B, queries, keys)
        mask = torch.zeros(visible.shape, dtype=dtype, device=starts.device)
        masks.append(mask.masked_fill(~visible, -torch.inf).unsqueeze(1))
    return tuple(masks)


def cumulative_lengths(starts: Tensor) -> Tensor:
    """Return where each document starts in the flattened tokens, in order, filled up with B · T (B · T + 1,).

    The number of documents is known only on the device, so this has room for as many as there are tokens.
    """
    B, T = starts.shape
    token = torch.arange(B * T, device=starts.device)
    opens = starts.flatten() == token % T
    found = torch.where(opens, token, B * T).sort().values
    return torch.cat((found, found.new_full((1,), B * T))).int()


def document_blocks(starts: Tensor) -> "BlockMask":
    """Return the mask in blocks for flex_attention, which skips the blocks in which no query attends to a key.

    `create_block_mask` would first make the whole mask (B, T, T). Here the blocks follow from the first and the last
    start in each block of queries, since starts never decrease.
    """
    from torch.nn.attention.flex_attention import BlockMask  # takes long to import, and few runs need it

    T = starts.shape[1]
    first = starts[:, ::BLOCK].unsqueeze(-1)  # (B, N, 1)
    ends = torch.arange(BLOCK - 1, T - 1 + BLOCK, BLOCK, device=starts.device).clamp(max=T - 1)
    last = starts[:, ends].unsqueeze(-1)  # (B, N, 1)
    key_block = torch.arange(first.shape[1], device=starts.device)
    before = key_block < key_block.unsqueeze(-1)  # (N, N)
    full = before & (last <= BLOCK * key_block)  # every query attends to every key
    some = (first // BLOCK <= key_block) & (key_block <= key_block.unsqueeze(-1)) & ~full

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (starts[batch, query] <= key) & (key <= query)

    return BlockMask.from_kv_blocks(*_ordered(some), *_ordered(full), BLOCK, visible, seq_lengths=(T, T))


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of true key blocks for each block of queries (B, 1, N), and all key blocks, those first."""
    indices = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1).int().unsqueeze(1), indices.int().unsqueeze(1)
