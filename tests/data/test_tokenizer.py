"""Tokenizers: encoded text decodes exactly, a vocabulary comes from its corpus, and mistakes say what to do."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from support.tokenizer_samples import CODE, ENCODINGS, SAMPLES, TEXTS, NoText, Texts, fitted, sentencepiece_like
from tokenizers import Tokenizer

from lmtrain.data import tokenizer as module
from lmtrain.data.stored_tokenizer import (
    END_OF_TEXT,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    load_tokenizer,
    save_tokenizer,
)
from lmtrain.data.tokenizer import BPE, Characters, Pretrained, TikToken

pytestmark = pytest.mark.usefixtures("tiktoken_plugin")


# Made from a corpus


@pytest.mark.parametrize("name", ["bytes", "bpe", *ENCODINGS])
@given(text=TEXTS)
@settings(max_examples=100, deadline=None)
def test_any_text_decodes_exactly(name: str, text: str) -> None:
    tokenizer, stored = fitted(name)
    [ids] = tokenizer.encoder(stored)([text])
    assert ids.dtype == np.uint32
    assert stored.encode(text) == ids.tolist()
    assert ids.max(initial=0) < stored.vocab_size
    assert stored.decode(ids.tolist()) == text
    assert stored.end_of_text is not None
    assert stored.end_of_text not in ids
    assert stored.decode([*ids.tolist(), stored.end_of_text]) == text


def test_the_ids_of_the_bytes_tokenizer_are_the_bytes() -> None:
    tokenizer, stored = fitted("bytes")
    assert (stored.vocab_size, stored.end_of_text) == (257, 256)
    for text, ids in zip(SAMPLES, tokenizer.encoder(stored)(SAMPLES), strict=True):
        assert bytes(ids.tolist()) == text.encode()


def test_bpe_is_trained_on_its_corpus() -> None:
    stored = fitted("bpe")[1]
    assert (stored.end_of_text, stored.vocab_size) == (0, 1500)
    assert stored.tokenizer.id_to_token(0) == END_OF_TEXT
    assert len(stored.encode(CODE[:100_000])) < 40_000
    small = BPE(1500).fit(Texts("low lower lowest"))
    assert 257 < small.vocab_size < 300  # fewer entries than asked for
    assert BPE(300).fit(Texts()).vocab_size == 257


def test_one_long_text_gives_the_vocabulary_of_its_lines() -> None:
    lines = BPE(600).fit(Texts(*CODE[:120_000].splitlines(keepends=True)))
    long = BPE(600).fit(Texts(CODE[:120_000]))
    assert long.tokenizer.get_vocab_size() == 600
    # The lines lack only the runs of whitespace that cross their ends.
    assert len(set(long.tokenizer.get_vocab()) - set(lines.tokenizer.get_vocab())) < 20


class Counted(Texts):
    """Texts that record how many bytes were asked for."""

    asked = 0

    def train_sample(self, max_bytes: int) -> Iterator[str]:
        self.asked = max_bytes
        return self.texts()


def test_bpe_trains_on_less_text_if_few_words_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AUTO_WORD_BYTES", 100_000)
    generator = random.Random(0)
    clauses = ["".join(chr(generator.randrange(0x4E00, 0x9000)) for _ in range(12)) + "。\n" for _ in range(20_000)]
    chinese = Counted(*("".join(clauses[start : start + 20]) for start in range(0, 20_000, 20)))  # 800 kB
    taken = list(BPE(300)._text(chinese))
    assert chinese.asked == module.AUTO_TRAIN_BYTES
    assert 90_000 < len("".join(taken).encode()) < 130_000
    places = [chinese.all.index(text) for text in taken]
    assert places == sorted(places)
    assert max(np.diff(places)) <= 10  # evenly spread
    assert places[0] < 10
    assert places[-1] > 990
    repeating = Counted(*(CODE[:1000] for _ in range(800)))
    assert "".join(BPE(300)._text(repeating)) == CODE[:1000] * 800
    chosen = Counted(*chinese.all)
    assert "".join(BPE(300, train_bytes=12_345)._text(chosen)) == "".join(clauses)
    assert chosen.asked == 12_345


def test_the_characters_come_from_all_texts() -> None:
    tokenizer = Characters()
    stored = tokenizer.fit(Texts("hello\n", "wörld 🦊", "\x00"))
    assert stored.end_of_text is None
    known = sorted(set("hello\nwörld 🦊\x00"))
    assert stored.vocab_size == len(known)
    for text in ("", "hello", "🦊 ö\x00\n"):
        [ids] = tokenizer.encoder(stored)([text])
        assert ids.tolist() == stored.encode(text) == [known.index(character) for character in text]
        assert stored.decode(ids.tolist()) == text
    for encode in (tokenizer.encoder(stored), stored.encode_batch):
        with pytest.raises(ValueError, match=r"the tokenizer does not know '!狐'"):
            encode(["hello", "wow, 狐!".replace(",", "l").replace("w", "l")])


@pytest.mark.parametrize("name", ["bytes", "bpe", ENCODINGS[0]])
def test_text_that_is_not_valid_unicode_is_refused(name: str) -> None:
    tokenizer, stored = fitted(name)
    for encode in (tokenizer.encoder(stored), stored.encode_batch):
        with pytest.raises(ValueError, match=r"ud800"):
            encode(["a\ud800b"])


# Pretrained


def test_a_pretrained_tokenizer_adds_no_tokens_and_truncates_nothing(tmp_path: Path) -> None:
    folder = sentencepiece_like(tmp_path / "llama", eos_token={"content": "</s>", "lstrip": False})
    raw = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    assert len(raw.encode(CODE[:1000]).ids) == 12
    tokenizer = Pretrained(str(folder))
    stored = tokenizer.fit(NoText())
    assert stored.end_of_text == 2
    [ids, spelled] = tokenizer.encoder(stored)([CODE[:1000], "a</s>"])
    assert stored.decode(ids.tolist()) == CODE[:1000]
    assert 1 not in ids
    assert 2 not in spelled
    save_tokenizer(tmp_path, stored)
    assert load_tokenizer(tmp_path).tokenizer.encode(CODE[:1000]).ids == ids.tolist()


@pytest.mark.parametrize(
    ("own_settings", "asked", "found"),
    [
        ({"eos_token": "<unk>"}, "auto", 0),
        ({"eos_token": None}, "auto", None),
        ({"other": 1}, "auto", 2),
        ({}, "auto", 2),
        ({"eos_token": "<unk>"}, None, None),
        ({"eos_token": "<unk>"}, "<s>", 1),
    ],
)
def test_the_end_of_text_is_the_one_asked_for(
    own_settings: dict[str, Any], asked: str | None, found: int | None, tmp_path: Path
) -> None:
    folder = sentencepiece_like(tmp_path / "llama", **own_settings)
    for path in (folder, folder / TOKENIZER_FILE):
        assert Pretrained(str(path), asked).fit(NoText()).end_of_text == found
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<s>"}}')
    if "eos_token" not in own_settings and asked == "auto":
        assert Pretrained(str(folder), asked).fit(NoText()).end_of_text == 1


def test_messages_about_pretrained_tokenizers_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sentencepiece_like(tmp_path / "llama")
    for path in ("missing/tokenizer.json", "./missing", "~/missing", "a/b/c", ""):
        with pytest.raises(ValueError, match=rf"^prepare.tokenizer.path={path}: no such file or folder"):
            Pretrained(path)
    with pytest.raises(
        ValueError, match=r"^prepare.tokenizer.end_of_text=<eos>: '<eos>' is not .*</s>, <s>, <unk>.* null"
    ):
        Pretrained(str(folder), "<eos>").fit(NoText())
    (folder / TOKENIZER_CONFIG_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"^prepare.tokenizer.path=.*llama: .*tokenizer_config.json: not the settings"):
        Pretrained(str(folder)).fit(NoText())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^prepare.tokenizer.path=.*empty: has no tokenizer.json, and no files"):
        Pretrained(str(tmp_path / "empty")).fit(NoText())
    characters = Characters().fit(Texts("abc"))
    characters.tokenizer.save(str(tmp_path / "characters.json"))
    with pytest.raises(ValueError, match=r"^prepare.tokenizer.end_of_text=auto: .*it has no special tokens.*null"):
        Pretrained(str(tmp_path / "characters.json")).fit(NoText())
    (tmp_path / "empty" / "tokenizer.model").write_bytes(b"x")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"^prepare.tokenizer.path=.*pip install 'lmtrain\[transformers\]'"):
        Pretrained(str(tmp_path / "empty")).fit(NoText())


def test_messages_about_tiktoken_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"^prepare.tokenizer.encoding=gpt5: no such encoding; choose one of .*cl100k_base"
    ):
        TikToken("gpt5")
    with pytest.raises(ValueError, match=r"^prepare.tokenizer.encoding=tiny_offline: .*no route.*TIKTOKEN_CACHE_DIR"):
        TikToken("tiny_offline").fit(NoText())
    with pytest.raises(
        ValueError, match=r"^prepare.tokenizer.encoding=tiny_untranslatable: the tokenizers library can't"
    ):
        TikToken("tiny_untranslatable").fit(NoText())
    with pytest.raises(ValueError, match=r"^prepare.tokenizer.end_of_text=</s>: .*<\|endofprompt\|>, <\|endoftext\|>"):
        TikToken("tiny_gpt2", end_of_text="</s>").fit(NoText())
    assert TikToken("tiny_gpt2", end_of_text=None).fit(NoText()).end_of_text is None
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ValueError, match=r"^prepare.tokenizer.encoding=gpt2: .*pip install 'lmtrain\[tiktoken\]'"):
        TikToken("gpt2")


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^prepare.tokenizer.vocab_size=256: .* at least 257"):
        BPE(256)
