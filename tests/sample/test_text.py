"""A growing text against decoding all its tokens at once."""

from collections.abc import Sequence

import pytest
from support.exported import tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lmtrain.data.stored_tokenizer import StoredTokenizer
from lmtrain.sample.text import NEIGHBOURS, UNFINISHED, GrowingText

TEXT = "def café(): # 🦊 狐\n    return 'é'  \n\n" * 20


def words() -> StoredTokenizer:
    """Return a tokenizer whose decoder drops the space before the first word, as that of Llama 2."""
    pieces = ["▁a", "▁fox", "es", "▁", "<0x20>", "."]
    made = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="."))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return StoredTokenizer(made, None)


def stored(kind: str) -> tuple[StoredTokenizer, list[int]]:
    if kind == "words":
        return words(), [0, 1, 2, 5, 3, 0, 4, 1, 1, 5] * 10
    made = tokenizer(kind)
    return made, made.encode(TEXT if kind != "characters" else TEXT.replace("🦊", "狐").replace("café", "caf"))


@pytest.mark.parametrize("kind", ["bpe", "bytes", "words"])
@pytest.mark.parametrize("prompt", [1, 3, 20])
def test_pieces_are_those_of_the_whole_text(kind: str, prompt: int) -> None:
    made, ids = stored(kind)
    growing, shown = GrowingText(made, ids[:prompt], []), ""
    for end in range(prompt + 1, len(ids) + 1):
        growing.add(ids[end - 1])
        shown += growing.piece()
        whole = made.decode(ids[:end])
        if not whole.endswith(UNFINISHED):
            assert made.decode(ids[:prompt]) + shown == whole
    growing.finish()
    assert made.decode(ids[:prompt]) + shown + growing.piece(last=True) == made.decode(ids)


@pytest.mark.parametrize("stop", ["return", "'é'", "\n\n", "🦊 狐"])
def test_a_stop_text_is_found_across_tokens_and_never_shown(stop: str) -> None:
    made, ids = stored("bytes")
    growing, shown = GrowingText(made, ids[:1], [stop, "not there"]), ""
    for token in ids[1:]:
        growing.add(token)
        shown += growing.piece()
        if growing.found:
            break
    growing.finish()
    assert growing.found
    assert shown == growing.text == made.decode(ids[1:]).split(stop)[0]


def test_a_token_costs_the_decoding_of_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    made, ids = stored("bpe")
    growing, lengths = GrowingText(made, ids[:50], ["never"]), []
    decode = StoredTokenizer.decode

    def counting(self: StoredTokenizer, ids: Sequence[int]) -> str:
        lengths.append(len(ids))
        return decode(self, ids)

    monkeypatch.setattr(StoredTokenizer, "decode", counting)
    for token in ids[50:]:
        growing.add(token)
    assert len(lengths) == 2 * (len(ids) - 50)
    assert max(lengths) <= NEIGHBOURS + 8  # a character has a few tokens
