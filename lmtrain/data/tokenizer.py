"""Tokenizers that are trained on the corpus itself; each gives a `tokenizers.Tokenizer`, stored as one JSON file."""

from collections.abc import Iterable

import tokenizers
from pydantic import PositiveInt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END_OF_TEXT = "<|endoftext|>"
FILE = "tokenizer.json"


class BPE:
    """Byte-level byte-pair encoding, as in GPT-2: any text round-trips. Id 0 is `<|endoftext|>`."""

    kind = "bpe"
    end_of_text: str | None = END_OF_TEXT

    def __init__(self, vocab_size: PositiveInt) -> None:
        if vocab_size < 257:
            raise ValueError(
                f"prepare.tokenizer.vocab_size={vocab_size}: 256 bytes and <|endoftext|> need at least 257"
            )
        self.vocab_size = vocab_size

    def train(self, texts: Iterable[str]) -> Tokenizer:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer


class Characters:
    """One id a character of the corpus, sorted by code point; no end-of-text id."""

    kind = "characters"
    end_of_text: str | None = None

    def train(self, texts: Iterable[str]) -> Tokenizer:
        characters = sorted(set().union(*texts))
        tokenizer = Tokenizer(models.WordLevel({character: i for i, character in enumerate(characters)}))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return tokenizer


CorpusTokenizer = BPE | Characters


def load(path: str) -> Tokenizer:
    """The tokenizer stored beside token files or in a run directory."""
    return tokenizers.Tokenizer.from_file(path)
