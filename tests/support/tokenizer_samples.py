"""Samples of all kinds of text, and all kinds of tokenizers trained on them."""

import json
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from lmtrain.data import byte_level_bpe
from lmtrain.data.stored_tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, StoredTokenizer
from lmtrain.data.tokenizer import BPE, Bytes, CorpusTokenizer, TikToken

LIBRARY = Path(sysconfig.get_paths()["stdlib"])

CODE = "".join(path.read_bytes().decode() for path in sorted(LIBRARY.glob("[a-d]*.py")))[:1_500_000]

SAMPLES = [
    "",
    "The  quick—brown\n\n\nfox's IT'LL 1234567 ½ <|endoftext|> </s>",
    "狐狸が走る。\u3000🦊👩‍👩‍👧‍👦 e\u0301 \r\n\t\x00\x85 \u200b",
    " " * 300 + "x" + "\n" * 300 + " \n" * 50,
    "a" * 1000 + "=" * 1000 + "1" * 1000,
    CODE[:20_000],
]

# Parts of text that the patterns of tokenizers distinguish.
PARTS = (
    [
        "a",
        "B",
        "the",
        "'s",
        "'LL",
        "'",
        "ſ",
        "é",
        "\u0301",
        "ʰ",
        "ǅ",
        "狐",
        "🦊",
        "\u200d",
        "1",
        "²",
        "12345",
        "_",
        "!",
        "/",
    ],
    [" ", "  ", "\t", "\n", "\r\n", "\u3000", "\x85", "\x1c", " " * 40, "\n" * 40, "a" * 40, "<|endoftext|>"],
)

TEXTS = st.text() | st.lists(st.sampled_from([*PARTS[0], *PARTS[1]]), max_size=30).map("".join)


class Texts:
    """A corpus of texts in memory."""

    def __init__(self, *texts: str) -> None:
        self.all = texts

    def texts(self) -> Iterator[str]:
        yield from self.all

    def train_sample(self, max_bytes: int) -> Iterator[str]:
        yield from self.all


class NoText:
    """A corpus for tokenizers that must not read it."""

    def texts(self) -> Iterator[str]:
        pytest.fail("the corpus was read")

    train_sample = texts  # type: ignore[assignment]


PATTERNS = ("gpt2", "cl100k_base", "o200k_base")

ENCODINGS = [f"tiny_{name}" for name in PATTERNS]

PLUGIN = """
from functools import partial
from pathlib import Path
from unittest import mock

from tiktoken.load import load_tiktoken_bpe
from tiktoken_ext import openai_public as public

def pattern(name):
    if name == "gpt2":
        return public.r50k_pat_str
    with mock.patch.object(public, "load_tiktoken_bpe", lambda *_, **__: {}):  # would be downloaded
        return public.ENCODING_CONSTRUCTORS[name]()["pat_str"]

def tiny(name):
    ranks = load_tiktoken_bpe(str(Path(__file__).with_name(f"{name}.tiktoken")))
    end = len(ranks) + 1  # with a gap before and after it, as in cl100k_base
    special = {"<|endoftext|>": end, "<|endofprompt|>": end + 19}
    return {"name": f"tiny_{name}", "pat_str": pattern(name), "mergeable_ranks": ranks, "special_tokens": special}

def offline():
    raise ConnectionError("no route to host")

def untranslatable():
    return {**tiny("gpt2"), "name": "tiny_untranslatable", "pat_str": r"(?s).|\\\\w+"}

ENCODING_CONSTRUCTORS = {f"tiny_{name}": partial(tiny, name) for name in ("gpt2", "cl100k_base", "o200k_base")}
ENCODING_CONSTRUCTORS |= {"tiny_offline": offline, "tiny_untranslatable": untranslatable}
"""


@cache
def ranks_of(pattern: str) -> dict[bytes, int]:
    """Return ranks like those of tiktoken, where single bytes are not in the order of their values."""
    split = pre_tokenizers.Split(Regex(pattern.replace("{1,3}+", "{1,3}")), "isolated")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([CODE[:600_000], "".join(SAMPLES) * 3], trainer)
    return {bytes(byte_level_bpe._BYTE[one] for one in token): rank for token, rank in tokenizer.get_vocab().items()}


def sentencepiece_like(path: Path, **settings: Any) -> Path:
    """Write a tokenizer folder like Llama 2's: a BOS template, truncation, padding and eos_token `</s>`."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CODE[:50_000].splitlines(), trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]  # type: ignore[list-item]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.enable_truncation(10)
    tokenizer.enable_padding(length=12)
    fields = json.loads(tokenizer.to_str())
    fields["added_tokens"] = fields["added_tokens"][:3]  # single bytes are not special tokens
    path.mkdir()
    (path / TOKENIZER_FILE).write_text(json.dumps(fields))
    if settings:
        (path / TOKENIZER_CONFIG_FILE).write_text(json.dumps(settings))
    return path


FITTED: dict[str, tuple[CorpusTokenizer, StoredTokenizer]] = {}


def fitted(name: str) -> tuple[CorpusTokenizer, StoredTokenizer]:
    """Return a tokenizer, fitted only once because Hypothesis calls tests many times."""
    if name not in FITTED:
        kinds: dict[str, Any] = {"bytes": Bytes, "bpe": lambda: BPE(1500)}
        kind = kinds[name]() if name in kinds else TikToken(name)
        FITTED[name] = kind, kind.fit(Texts(CODE[:300_000]) if name == "bpe" else NoText())
    return FITTED[name]
