"""Each form in which a kernel takes the documents says the same as the whole mask (B, T, T)."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmtrain.model.document_mask import (
    BLOCK,
    CHUNK_QUERIES,
    MOST_CHUNKS,
    chunks_of_queries,
    cumulative_lengths,
    document_blocks,
    mask_chunks,
    starts_and_positions,
    starts_of_windows,
)

END_OF_TEXT = 3


def random_starts(length: int, share: float, rows: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    tokens = (torch.rand(rows, length, generator=generator) > share).long() + END_OF_TEXT
    return starts_and_positions(tokens, END_OF_TEXT)[0]


def visible(starts: Tensor, window: int | None = None) -> Tensor:
    """Return the whole mask (B, T, T), as documents and windows define it."""
    same = starts.unsqueeze(-1) == starts.unsqueeze(-2)
    seen = same & torch.ones(same.shape[-2:], dtype=torch.bool).tril()
    return seen if window is None else seen.triu(1 - window)


LENGTHS = [1, 5, 127, 128, 129, 256, 257, 700, 2100]
every_length = pytest.mark.parametrize("length", LENGTHS)


@every_length
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_chunks_of_the_mask_are_parts_of_the_whole_mask(length: int, share: float) -> None:
    starts = random_starts(length, share, rows=1)
    whole, chunks = visible(starts), chunks_of_queries(length)
    assert len(chunks) <= MOST_CHUNKS
    assert [index for chunk in chunks for index in range(length)[chunk]] == list(range(length))
    for chunk, mask in zip(chunks, mask_chunks(starts, torch.bfloat16), strict=True):
        assert torch.equal(mask[:, 0] == 0, whole[:, chunk, : chunk.stop])
        assert torch.equal(mask[:, 0] == -torch.inf, ~whole[:, chunk, : chunk.stop])
        assert not whole[:, chunk, chunk.stop :].any()


@pytest.mark.parametrize("length", [1, 129, 700, 2100])
@pytest.mark.parametrize("window", [1, 100, 300])
def test_chunks_of_windows_have_the_keys_that_their_queries_see(length: int, window: int) -> None:
    starts = random_starts(length, 0.01, rows=1)
    whole, end = visible(starts, window), 0
    for mask in mask_chunks(starts_of_windows(starts, window), torch.float32, window):
        begin, end = end, end + mask.shape[-2]
        first = end - mask.shape[-1]
        assert torch.equal(mask[:, 0] == 0, whole[:, begin:end, first:end])
        assert not whole[:, begin:end, :first].any()
        assert end - begin <= max(CHUNK_QUERIES, window)
        assert first == max(0, begin + 1 - window)
    assert end == length


@every_length
def test_cumulative_lengths_have_room_for_every_token(length: int) -> None:
    starts = random_starts(length, 0.1)
    tokens = starts.numel()
    lengths = cumulative_lengths(starts)
    opened = [row * length + start for row, own in enumerate(starts.tolist()) for start in sorted(set(own))]
    assert lengths.dtype == torch.int32
    assert lengths.tolist() == opened + [tokens] * (tokens + 1 - len(opened))


@every_length
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_blocks_cover_what_is_visible(length: int, share: float) -> None:
    starts = random_starts(length, share)
    check_blocks(document_blocks(starts), visible(starts))


@pytest.mark.parametrize("length", [129, 700])
@pytest.mark.parametrize("window", [1, 129, 300])
@pytest.mark.parametrize("share", [0.0, 0.01])
def test_blocks_cover_what_is_visible_in_windows(length: int, window: int, share: float) -> None:
    starts = random_starts(length, share)
    check_blocks(document_blocks(starts_of_windows(starts, window)), visible(starts, window))


def check_blocks(blocks: Any, whole: Tensor) -> None:
    length = whole.shape[1]
    count = -(-length // BLOCK)
    padded = F.pad(whole, (0, count * BLOCK - length, 0, count * BLOCK - length))
    in_blocks = padded.unflatten(1, (count, BLOCK)).unflatten(3, (count, BLOCK)).transpose(2, 3)  # (B, N, N, ...)
    some = in_blocks.flatten(3).any(-1)
    listed = torch.zeros_like(some)
    for numbers, indices, must_be_full in (
        (blocks.kv_num_blocks, blocks.kv_indices, False),
        (blocks.full_kv_num_blocks, blocks.full_kv_indices, True),
    ):
        for row, query_block in itertools.product(range(len(whole)), range(count)):
            for key_block in indices[row, 0, query_block, : numbers[row, 0, query_block]].tolist():
                assert not listed[row, query_block, key_block]
                listed[row, query_block, key_block] = True
                queries = slice(query_block * BLOCK, min((query_block + 1) * BLOCK, length))
                keys = slice(key_block * BLOCK, (key_block + 1) * BLOCK)
                assert not must_be_full or whole[row, queries, keys].all()
    assert torch.equal(listed, some)
    batch, query, key = torch.meshgrid(*(torch.arange(size) for size in whole.shape), indexing="ij")
    assert torch.equal(blocks.mask_mod(batch, torch.zeros(()), query, key), whole)
