"""Lost text: text that a tokenizer drops or does not know counts, but changes by its normalizer do not."""

import json
import math
import string
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from lmtrain.config.build import build
from lmtrain.data.loader import TokenLoader
from lmtrain.data.meta import Meta, read_meta
from lmtrain.data.mixture import Mixture
from lmtrain.data.prepare import prepare
from lmtrain.data.progress import DataProgress
from lmtrain.data.stored_tokenizer import StoredTokenizer
from lmtrain.data.tokenizer import BPE, Bytes, Characters, CorpusTokenizer
from lmtrain.data.writing.lost_text import ALL_BYTES, LostTextMeter

LETTERS = string.ascii_lowercase + ",."
KNOWN = "the cat sat on the mat, and the dog did not. " * 20
UNKNOWN = "Все счастливые семьи похожи друг на друга. " * 20


def dropping() -> Tokenizer:
    """Return a BPE tokenizer without an unknown token, which drops unknown characters."""
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate("▁" + LETTERS)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return tokenizer


def by_word() -> Tokenizer:
    """Return a WordPiece tokenizer like BERT's: an unknown letter makes a word unknown; no case, no accents."""
    pieces = ["[UNK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def unigram() -> Tokenizer:
    """Return a Unigram tokenizer with NFKC, like SentencePiece's; the normalizer marks spaces, as in Llama 2's file."""
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), *((letter, -1.0) for letter in "▁" + LETTERS)], unk_id=0))
    steps = normalizers.NFKC(), normalizers.Lowercase(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([*steps])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def lost_share(tokenizer: Tokenizer, *texts: str) -> float:
    lost = LostTextMeter(StoredTokenizer(tokenizer, None))(texts)
    assert lost.checked_bytes == sum(len(text.encode()) for text in texts)  # a small text is checked as a whole
    return lost.lost_bytes / lost.checked_bytes


TOKENIZERS = [dropping, by_word, unigram]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_known_text_is_kept_and_unknown_text_is_lost(tokenizer: object) -> None:
    assert lost_share(tokenizer(), KNOWN) == 0  # type: ignore[operator]
    assert lost_share(tokenizer(), UNKNOWN) > 0.95  # type: ignore[operator]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_the_share_is_of_bytes_without_whitespace(tokenizer: object) -> None:
    known, unknown = ("".join(text.split()) for text in (KNOWN, UNKNOWN))
    expected = len(unknown.replace(".", "").encode()) / len((known + unknown).encode())
    assert lost_share(tokenizer(), KNOWN, UNKNOWN) == pytest.approx(expected, abs=1e-3)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("tokenizer", "text"), [(by_word, "THE Café, naïve. "), (unigram, "ＦＵＬＬ　width, the ﬁne ﬂag. ")]
)
def test_text_that_a_normalizer_changes_is_not_lost(tokenizer: object, text: str) -> None:
    assert lost_share(tokenizer(), text * 20) == 0  # type: ignore[operator]


class Text:
    """A corpus of one text."""

    def texts(self) -> list[str]:
        return [KNOWN + UNKNOWN]

    def train_sample(self, max_bytes: int) -> list[str]:
        return self.texts()


@pytest.mark.parametrize("tokenizer", [BPE(300), Bytes(), Characters()], ids=lambda tokenizer: tokenizer.kind)
def test_tokenizers_that_know_every_text_are_not_measured(tokenizer: CorpusTokenizer) -> None:
    meter = LostTextMeter(tokenizer.fit(Text()))
    assert meter.loses_nothing
    assert meter([KNOWN]) == (0, 0)


@pytest.mark.parametrize("special", [False, True])
def test_a_tokenizer_with_all_bytes_keeps_every_text_even_if_they_are_special_tokens(special: bool) -> None:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    if special:  # the trainers of the tokenizers library add them like this
        tokenizer.add_special_tokens(pieces[1:257])
    assert LostTextMeter(StoredTokenizer(tokenizer, None)).loses_nothing


def test_unigram_without_an_unknown_token_is_measured() -> None:
    tokenizer = Tokenizer(models.Unigram([(letter, -1.0) for letter in "▁" + LETTERS], unk_id=None))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    assert lost_share(tokenizer, KNOWN) == 0


def test_all_bytes_has_all_bytes_of_utf_8() -> None:
    invalid = {0xC0, 0xC1, *range(0xF5, 0x100)}
    assert set(ALL_BYTES.encode()) == set(range(256)) - invalid


def test_large_texts_are_sampled_from_end_to_end() -> None:
    meter = LostTextMeter(StoredTokenizer(dropping(), None))
    checked, lost = meter([KNOWN * 200, UNKNOWN * 200, KNOWN * 200])
    exact = lost_share(dropping(), KNOWN, UNKNOWN, KNOWN)
    assert checked < 100_000
    assert lost / checked == pytest.approx(exact, abs=0.03)


# Preparing


def config(folder: Path, text: str, **settings: object) -> dict[str, object]:
    dropping().save(str(folder / "tokenizer.json"))
    (folder / "a.txt").write_text(text, encoding="utf-8")
    return {
        "_target_": "lmtrain.data.prepare.Recipe",
        "workers": 1,
        "source": {"_target_": "lmtrain.data.text.source.TextFiles", "files": str(folder / "a.txt")},
        "tokenizer": {
            "_target_": "lmtrain.data.tokenizer.Pretrained",
            "path": str(folder / "tokenizer.json"),
            "end_of_text": None,
        },
        "holdout": {
            "_target_": "lmtrain.data.text.holdout.tail_of_each_document",
            "_partial_": True,
            "val_share": 0.1,
        },
        **settings,
    }


def prepared(folder: Path, settings: dict[str, object]) -> Meta:
    with DataProgress() as progress:
        return prepare(folder, settings, build, progress)[0]


def test_text_that_is_mostly_lost_is_refused_unless_allowed(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"prepare\.tokenizer: has no tokens for (\d+)\.\d% .*max_lost_share=0\."
    ) as refused:
        prepared(tmp_path / "out", config(tmp_path, KNOWN + UNKNOWN))
    assert not (tmp_path / "out").exists()
    allowed = float(str(refused.value).rpartition("=")[2])
    meta = prepared(tmp_path / "out", config(tmp_path, KNOWN + UNKNOWN, max_lost_share=allowed))
    assert 0.6 < meta.splits["train"].lost_share <= allowed
    # The setting does not change the files, so it is not recorded.
    assert prepared(tmp_path / "out", config(tmp_path, KNOWN + UNKNOWN)) == meta


def test_the_share_is_in_meta_json_and_does_not_count_in_bytes_per_token(tmp_path: Path) -> None:
    text = (KNOWN + UNKNOWN[:12]) * 20
    prepared(tmp_path / "out", config(tmp_path, text))
    written = json.loads((tmp_path / "out" / "meta.json").read_text(encoding="utf-8"))["splits"]["train"]
    assert 0.01 < written["lost_share"] < 0.05
    meta = read_meta(tmp_path / "out")
    assert meta is not None
    train = meta.splits["train"]
    loader = TokenLoader(str(tmp_path / "out"), "train", 1, 8, seed=0)
    assert loader.bytes_per_token == train.bytes * (1 - written["lost_share"]) / train.tokens
    mixture = Mixture({"a": str(tmp_path / "out")}, {"a": 1.0}, "train", 1, 8, 0)
    assert mixture.bytes_per_token == mixture.sampled_bytes_per_token == loader.bytes_per_token
    # A token of this tokenizer is one ASCII letter.
    assert math.isclose(loader.bytes_per_token or 0.0, 1, rel_tol=0.01)
