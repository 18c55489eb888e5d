"""Byte-level BPE in two forms: the `tokenizer.json` of the tokenizers library, and the ranks of the faster tiktoken."""

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from lmtrain.data.stored_tokenizer import Encode, Ids, StoredTokenizer
from lmtrain.machine import available_cores, is_installed

if TYPE_CHECKING:
    import tiktoken

# In tokenizer.json each byte is a character: a printable byte is itself, the others get the code points from 256 on.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_ALPHABET: Mapping[int, str] = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(256 + number) for number, byte in enumerate(_OTHERS)
}
_BYTE = {character: byte for byte, character in BYTE_ALPHABET.items()}

# GPT-2's pattern as tiktoken writes it. It gives the same pieces, but is faster.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# Letters of all kinds, marks, numbers, punctuation, spaces. Each conversion is tested on all triples of them.
_PROBES = (
    *("a", "S", "ſ", "é", "\u0301", "ʰ", "ǅ", "狐", "1", "²", "'", "!", "/", "_", "🦊", "\u200d", "\0"),
    *(" ", "\t", "\n", "\r", "\u3000", "\x85"),
)


def tokenizer_of_tiktoken(encoding: "tiktoken.Encoding") -> Tokenizer:
    """Return a tokenizer that produces the same ids as a tiktoken encoding.

    tiktoken joins the two neighbours whose combined bytes have the lowest rank. Here every pair of tokens whose
    combined bytes are a token becomes a merge, in the order of the ranks. Both keep a piece that is itself a token.

    Raises:
        ValueError: the tokenizers library can't reproduce the ids of the encoding.
    """
    ranks, special = encoding._mergeable_ranks, encoding._special_tokens
    spelled = {token: "".join(BYTE_ALPHABET[byte] for byte in token) for token in ranks}
    merges = sorted(
        (rank, ranks[token[:cut]], spelled[token[:cut]], spelled[token[cut:]])
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    )
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    model = models.BPE(
        vocab=vocabulary | special,  # a special token that is not in the model would get the next free id
        merges=[(left, right) for _, _, left, right in merges],
        ignore_merges=True,
    )
    tokenizer = Tokenizer(model)
    try:
        # Text that the pattern does not match is dropped, as in tiktoken.
        split = pre_tokenizers.Split(Regex(oniguruma(encoding._pat_str)), "removed", invert=True)
    except Exception as error:
        raise ValueError(f"the tokenizers library can't read its pattern ({error})") from error
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(sorted(special, key=special.__getitem__))
    tokenizer.encode_special_tokens = True
    triples = "".join(map("".join, itertools.product(_PROBES, repeat=3)))
    for text in (triples, "1234567 " * 3, "   x\n\n  ", *special):
        if tokenizer.encode(text).ids != encoding.encode_ordinary(text):
            raise ValueError("the tokenizers library can't produce the same ids from its pattern and ranks")
    return tokenizer


def oniguruma(pattern: str) -> str:
    """Return the pattern in the syntax of tokenizers, where `$`, `^` and `{1,3}+` have another meaning."""
    parts: list[str] = []
    for part in re.findall(r"\\[pP]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|\{\d+(?:,\d*)?\}\+|[\s\S]", pattern):
        if part in ("^", "$"):
            part = r"\A" if part == "^" else r"\z"
        elif part.endswith("}+"):  # possessive
            part = f"(?>{parts.pop()}{part[:-1]})"
        parts.append(part)
    return "".join(parts)


def gpt2_encoder(stored: StoredTokenizer, special: str) -> Encode:
    """Return a function that encodes with a byte-level BPE with GPT-2's pattern.

    It is faster if tiktoken is installed; the ids are always the same.
    """
    if not is_installed("tiktoken"):
        return stored.encode_batch
    import tiktoken

    vocabulary = stored.tokenizer.get_vocab(with_added_tokens=False)
    ranks = {
        bytes(_BYTE[character] for character in token): rank for token, rank in vocabulary.items() if token != special
    }
    encoding = tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})
    return tiktoken_encoder(encoding, stored)


def tiktoken_encoder(encoding: "tiktoken.Encoding", stored: StoredTokenizer) -> Encode:
    """Return a function that encodes with tiktoken and gives the same ids as `stored`.

    It uses all cores unless TOKENIZERS_PARALLELISM=false.
    """

    def encode_text(text: str) -> Ids:
        try:
            return encoding.encode_to_numpy(text, disallowed_special=())
        except ValueError:  # its pattern ran out of stack, for example on a million spaces in a row
            return stored.encode_batch([text])[0]

    def encode_part(texts: Sequence[str]) -> list[Ids]:
        return [encode_text(text) for text in texts]

    def encode(texts: Sequence[str]) -> list[Ids]:
        threads = min(len(texts), _threads())
        if threads <= 1:
            return encode_part(texts)
        cuts = [len(texts) * number // threads for number in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            parts = pool.map(encode_part, [texts[start:end] for start, end in itertools.pairwise(cuts)])
            return [ids for part in parts for ids in part]

    return encode


def _threads() -> int:
    if os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in ("0", "f", "false", "n", "no", "off"):
        return 1
    return available_cores()
