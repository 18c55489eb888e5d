"""Long documents are cut so that the tokens of the pieces are the tokens of the text."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizer_samples import CODE, ENCODINGS, PARTS, TEXTS, fitted

from lmtrain.data.stored_tokenizer import Encode
from lmtrain.data.text.document import cut_position, cut_text

pytestmark = pytest.mark.usefixtures("tiktoken_plugin")


@cache
def encoders() -> list[Encode]:
    return [kind.encoder(stored) for kind, stored in map(fitted, ["bpe", *ENCODINGS])]


def same_tokens(text: str, pieces: list[str]) -> bool:
    encoded = [encode([text, *pieces]) for encode in encoders()]
    return all(whole.tolist() == np.concatenate(of_pieces).tolist() for whole, *of_pieces in encoded)


LETTERS = st.characters(categories=["L", "N"], max_codepoint=0xFFFF)


@given(before=TEXTS, letter=LETTERS, newline=st.sampled_from("\n\r"), after=TEXTS)
@settings(max_examples=200, deadline=None)
def test_a_token_ends_before_a_newline_after_a_letter(before: str, letter: str, newline: str, after: str) -> None:
    assert same_tokens(before + letter + newline + after, [before + letter, newline + after])


@given(before=TEXTS, last=st.sampled_from(PARTS[0]) | LETTERS, space=st.sampled_from(" \t\u3000\x85"), after=TEXTS)
@settings(max_examples=200, deadline=None)
def test_a_token_ends_before_a_space_that_follows_no_space(before: str, last: str, space: str, after: str) -> None:
    assert same_tokens(before + last + space + after, [before + last, space + after])


@pytest.mark.parametrize("limit", [3_000, 70_000])
def test_pieces_have_the_tokens_of_the_text(limit: int) -> None:
    text = CODE[:200_000]
    cut = list(cut_text(text, limit))
    assert "".join(cut) == text
    assert max(map(len, cut)) <= limit
    assert min(map(len, cut[:-1])) >= limit // 2
    assert same_tokens(text, cut)


@pytest.mark.parametrize(
    ("text", "limit", "cut"),
    [
        ("short", 5, 5),
        ("ab\ncd\nef g", 8, 5),  # the last newline after a letter
        ("ab\r\ncd\r\nef", 9, 6),
        ("ab\ncd.\nef. g", 10, 10),  # no newline in the last half, but a space that follows no space
        ("ab. .\n  ..", 9, 7),  # neither of them: before any whitespace
        ("abcdefghij", 6, 6),  # no whitespace at all
        ("ab\ncdefghijk", 8, 8),  # not in the first half
        ("1\n2\n3\n4", 3, 3),
        ("abcd\nefg", 4, 4),  # at the limit
        ("狐狸\n狐狸狐", 3, 2),
        ("x\n" + "." * 200_001, 200_000, 200_000),
        ("x" * 70_000 + "\n" + "." * 69_999, 140_000 - 1, 70_000),  # far back
        ("ab", 1, 1),
    ],
)
def test_where_a_text_is_cut(text: str, limit: int, cut: int) -> None:
    assert cut_position(text, limit) == cut
    assert cut_position("a\nb\n" + text, limit, start=4) == cut + 4
