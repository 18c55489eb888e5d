"""Tokenizers: what was encoded decodes exactly, other libraries make the same ids, and mistakes say what to do."""

import base64
import json
import os
import pickle
import random
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from lmtrain.data import byte_level_encoder, pretrained_tokenizer
from lmtrain.data import tokenizer as module
from lmtrain.data.stored_tokenizer import CONFIG_FILE, END_OF_TEXT, FILE, Encode, StoredTokenizer, load, save
from lmtrain.data.text.document import cut_position, cut_text
from lmtrain.data.tokenizer import BPE, Bytes, Characters, CorpusTokenizer, Pretrained, TikToken

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
# Any text, and texts of what patterns tell apart.
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
    """A corpus of texts that are in memory."""

    def __init__(self, *texts: str) -> None:
        self.all = texts

    def texts(self) -> Iterator[str]:
        yield from self.all

    def train_sample(self, max_bytes: int) -> Iterator[str]:
        yield from self.all


class NoText:
    """The corpus of tokenizers that are made elsewhere."""

    def texts(self) -> Iterator[str]:
        pytest.fail("read the corpus")

    train_sample = texts  # type: ignore[assignment]


@pytest.fixture(scope="module", autouse=True)
def tiktoken_plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Encodings with the real patterns and ranks of our own, as the real ones would have to be fetched."""
    from tiktoken import registry

    folder = tmp_path_factory.mktemp("plugin")
    (folder / "tiktoken_ext").mkdir()
    (folder / "tiktoken_ext" / "tiny.py").write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("TIKTOKEN_CACHE_DIR", "")
        patch.setenv("TOKENIZERS_PARALLELISM", "false")  # threads cost more than they gain on small texts
        patch.setattr(registry, "ENCODING_CONSTRUCTORS", None)
        registry._available_plugin_modules.cache_clear()
        import tiktoken_ext.tiny  # type: ignore[import-not-found]

        for name in PATTERNS:
            ranks = _ranks(tiktoken_ext.tiny.pattern(name))
            lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
            (folder / "tiktoken_ext" / f"{name}.tiktoken").write_bytes(b"".join(lines))
        yield
    registry._available_plugin_modules.cache_clear()


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
    with mock.patch.object(public, "load_tiktoken_bpe", lambda *_, **__: {}):  # what would be fetched
        return public.ENCODING_CONSTRUCTORS[name]()["pat_str"]

def tiny(name):
    ranks = load_tiktoken_bpe(str(Path(__file__).with_name(f"{name}.tiktoken")))
    end = len(ranks) + 1  # a gap before it and another one after it, as in cl100k_base
    special = {"<|endoftext|>": end, "<|endofprompt|>": end + 19}
    return {"name": f"tiny_{name}", "pat_str": pattern(name), "mergeable_ranks": ranks, "special_tokens": special}

def offline():
    raise ConnectionError("no route to host")

def untranslatable():
    return {**tiny("gpt2"), "name": "tiny_untranslatable", "pat_str": r"(?s).|\\\\w+"}

ENCODING_CONSTRUCTORS = {f"tiny_{name}": partial(tiny, name) for name in ("gpt2", "cl100k_base", "o200k_base")}
ENCODING_CONSTRUCTORS |= {"tiny_offline": offline, "tiny_untranslatable": untranslatable}
"""


def _ranks(pattern: str) -> dict[bytes, int]:
    """Ranks as tiktoken has them, the bytes in another order than by value."""
    split = pre_tokenizers.Split(Regex(pattern.replace("{1,3}+", "{1,3}")), "isolated")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([CODE[:600_000], "".join(SAMPLES) * 3], trainer)
    return {
        bytes(byte_level_encoder._BYTE[one] for one in token): rank for token, rank in tokenizer.get_vocab().items()
    }


def sentencepiece_like(path: Path, **settings: Any) -> Path:
    """A folder as Llama 2 has it: a BOS template, truncation, padding and eos_token `</s>`."""
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
    fields["added_tokens"] = fields["added_tokens"][:3]  # bytes are no special tokens
    path.mkdir()
    (path / FILE).write_text(json.dumps(fields))
    if settings:
        (path / CONFIG_FILE).write_text(json.dumps(settings))
    return path


FITTED: dict[str, tuple[CorpusTokenizer, StoredTokenizer]] = {}


def fitted(name: str) -> tuple[CorpusTokenizer, StoredTokenizer]:
    """Made once, as Hypothesis calls tests many times."""
    if name not in FITTED:
        kinds: dict[str, Any] = {"bytes": Bytes, "bpe": lambda: BPE(1500)}
        kind = kinds[name]() if name in kinds else TikToken(name)
        FITTED[name] = kind, kind.fit(Texts(CODE[:300_000]) if name == "bpe" else NoText())
    return FITTED[name]


# What comes out


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


@pytest.mark.parametrize("name", ENCODINGS)
@given(text=TEXTS)
@settings(max_examples=400, deadline=None)
def test_a_converted_encoding_makes_the_ids_of_tiktoken(name: str, text: str) -> None:
    import tiktoken

    _, stored = fitted(name)
    assert stored.encode(text) == tiktoken.get_encoding(name).encode_ordinary(text)


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_converted_encoding_is_tiktokens_in_all_else(name: str) -> None:
    import tiktoken

    encoding = tiktoken.get_encoding(name)
    tokenizer, stored = fitted(name)
    assert stored.end_of_text == encoding.eot_token
    assert stored.vocab_size == encoding.n_vocab == stored.tokenizer.token_to_id("<|endofprompt|>") + 1
    for text in [*SAMPLES, CODE[-300_000:]]:
        expected = encoding.encode_ordinary(text)
        assert stored.encode(text) == expected
        assert tokenizer.encoder(stored)([text])[0].tolist() == expected
    for token, rank in encoding._mergeable_ranks.items():  # most of them are made by merges alone
        assert stored.tokenizer.id_to_token(rank) == "".join(byte_level_encoder.ALPHABET[byte] for byte in token)


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_character_is_split_as_tiktoken_does(name: str) -> None:
    import tiktoken

    encoding, (_, stored) = tiktoken.get_encoding(name), fitted(name)
    # Ideographs, Hangul, what is no character, old scripts.
    alike = [range(0x3400, 0xA000), range(0xAC00, 0xD7A4), range(0xD800, 0xF900), range(0x12000, 0x1D000)]
    characters = [chr(code) for code in range(0x20000) if not any(code in codes for codes in alike)]
    for before, after in (("a", "b"), ("'", " ")):
        text = "".join(before + character + after for character in characters)
        assert stored.encode(text) == encoding.encode_ordinary(text)


def test_bytes_are_the_bytes() -> None:
    tokenizer, stored = fitted("bytes")
    assert (stored.vocab_size, stored.end_of_text) == (257, 256)
    for text, ids in zip(SAMPLES, tokenizer.encoder(stored)(SAMPLES), strict=True):
        assert bytes(ids.tolist()) == text.encode()


@pytest.mark.parametrize("parallelism", ["true", "false"])
@pytest.mark.parametrize("package", ["tiktoken", None])
def test_bpe_makes_the_same_ids_with_what_is_installed(
    package: str | None, parallelism: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallelism)
    monkeypatch.setattr(byte_level_encoder.os, "sched_getaffinity", lambda _: {0, 1, 2})
    if package is None:
        monkeypatch.setitem(sys.modules, "tiktoken", None)
    tokenizer, stored = fitted("bpe")
    texts = [*SAMPLES, *CODE[-200_000:].splitlines(keepends=True)]
    encoded = tokenizer.encoder(stored)(texts)
    assert [ids.tolist() for ids in encoded] == [encoding.ids for encoding in stored.tokenizer.encode_batch(texts)]
    assert tokenizer.encoder(stored)([]) == []


def test_what_tiktoken_refuses_is_encoded_all_the_same() -> None:
    spaces = " " * 1_050_000 + "x"
    tokenizer, stored = fitted("bpe")
    [ids] = tokenizer.encoder(stored)([spaces])
    assert stored.decode(ids.tolist()) == spaces


def test_bpe_is_trained_on_what_it_is_given() -> None:
    stored = fitted("bpe")[1]
    assert (stored.end_of_text, stored.vocab_size) == (0, 1500)
    assert stored.tokenizer.id_to_token(0) == END_OF_TEXT
    assert len(stored.encode(CODE[:100_000])) < 40_000
    small = BPE(1500).fit(Texts("low lower lowest"))
    assert 257 < small.vocab_size < 300  # the caller can tell
    assert BPE(300).fit(Texts()).vocab_size == 257


def test_one_long_text_gives_the_vocabulary_of_its_lines() -> None:
    lines = BPE(600).fit(Texts(*CODE[:120_000].splitlines(keepends=True)))
    long = BPE(600).fit(Texts(CODE[:120_000]))
    assert long.tokenizer.get_vocab_size() == 600
    # Lines lack the runs of whitespace that go across their ends, and nothing else.
    assert len(set(long.tokenizer.get_vocab()) - set(lines.tokenizer.get_vocab())) < 20


class Counted(Texts):
    """Says how much was asked for."""

    asked = 0

    def train_sample(self, max_bytes: int) -> Iterator[str]:
        self.asked = max_bytes
        return self.texts()


def test_bpe_trains_on_less_where_words_hardly_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AUTO_WORD_BYTES", 100_000)
    generator = random.Random(0)
    clauses = ["".join(chr(generator.randrange(0x4E00, 0x9000)) for _ in range(12)) + "。\n" for _ in range(20_000)]
    chinese = Counted(*("".join(clauses[start : start + 20]) for start in range(0, 20_000, 20)))  # 800 kB
    taken = list(BPE(300)._text(chinese))
    assert chinese.asked == module.AUTO_TRAIN_BYTES
    assert 90_000 < len("".join(taken).encode()) < 130_000
    places = [chinese.all.index(text) for text in taken]
    assert places == sorted(places)
    assert max(np.diff(places)) <= 10  # evenly
    assert places[0] < 10
    assert places[-1] > 990
    repeating = Counted(*(CODE[:1000] for _ in range(800)))
    assert "".join(BPE(300)._text(repeating)) == CODE[:1000] * 800
    chosen = Counted(*chinese.all)
    assert "".join(BPE(300, train_bytes=12_345)._text(chosen)) == "".join(clauses)
    assert chosen.asked == 12_345


def test_characters_are_those_of_all_texts() -> None:
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
def test_text_that_is_no_unicode_is_refused(name: str) -> None:
    tokenizer, stored = fitted(name)
    for encode in (tokenizer.encoder(stored), stored.encode_batch):
        with pytest.raises(ValueError, match=r"ud800"):
            encode(["a\ud800b"])


# Stored, and read by others


@pytest.mark.parametrize("name", ["bytes", "bpe", "characters", ENCODINGS[1]])
def test_a_saved_folder_is_what_transformers_loads(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    stored = fitted(name)[1] if name != "characters" else Characters().fit(Texts(*SAMPLES))
    save(tmp_path, stored)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    again = load(tmp_path)
    assert (again.end_of_text, again.vocab_size) == (stored.end_of_text, stored.vocab_size)
    assert theirs.eos_token_id == stored.end_of_text
    for text in SAMPLES:
        plain = text.replace(END_OF_TEXT, "")  # which transformers takes for the token
        ids = theirs(plain).input_ids
        assert ids == stored.encode(plain) == again.encode(plain)
        assert theirs.decode(ids) == plain
        assert again.encode(text) == stored.encode(text)
        assert again.decode(again.encode(text)) == text


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from lmtrain.data.tokenizer import BPE, save
class Corpus:
    def train_sample(self, max_bytes): yield Path({str(LIBRARY / "argparse.py")!r}).read_text()
save(Path(sys.argv[1]), BPE(700).fit(Corpus()))
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    for name, threads in (("one", "1"), ("two", "2")):
        (tmp_path / name).mkdir()
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        subprocess.run([sys.executable, "-c", script, tmp_path / name], env=environment, check=True)
    for name in (FILE, CONFIG_FILE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    save(tmp_path / "two", load(tmp_path / "one"))
    assert (tmp_path / "one" / FILE).read_bytes() == (tmp_path / "two" / FILE).read_bytes()
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [FILE, CONFIG_FILE]


@pytest.mark.parametrize("name", ["bytes", "bpe", ENCODINGS[2]])
def test_a_copy_for_another_process_encodes_the_same(name: str, tmp_path: Path) -> None:
    tokenizer, stored = fitted(name)
    save(tmp_path, stored)
    encode = pickle.loads(pickle.dumps(tokenizer)).encoder(load(tmp_path))
    for ours, theirs in zip(tokenizer.encoder(stored)(SAMPLES), encode(SAMPLES), strict=True):
        assert ours.tolist() == theirs.tolist()
    copied = pickle.loads(pickle.dumps(stored))
    assert copied.encode(SAMPLES[1]) == stored.encode(SAMPLES[1])


def test_a_folder_without_settings_ends_text_with_a_well_known_token(tmp_path: Path) -> None:
    sentencepiece_like(tmp_path / "known")
    assert load(tmp_path / "known").end_of_text == 2
    stored = Characters().fit(Texts("</s>"))  # its characters, and no such token
    save(tmp_path, stored)
    (tmp_path / CONFIG_FILE).unlink()
    assert load(tmp_path).end_of_text is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (FILE, None, r"tokenizer\.json: not a file that the tokenizers library reads .*[Nn]o such file"),
        (FILE, b"", r"tokenizer\.json: not a file"),
        (FILE, b"cut", r"tokenizer\.json: not a file"),
        (FILE, b'{"version": "1.0"}', r"tokenizer\.json: not a file"),
        (CONFIG_FILE, b'{"eos_tok', r"tokenizer_config\.json: not the settings of a tokenizer"),
        (CONFIG_FILE, b"\xff", r"tokenizer_config\.json: not the settings of a tokenizer"),
        (CONFIG_FILE, b"3", r"tokenizer_config\.json: not the settings of a tokenizer"),
        (CONFIG_FILE, b'{"eos_token": 3}', r"tokenizer_config\.json: not the settings of a tokenizer"),
        (CONFIG_FILE, b'{"eos_token": {}}', r"tokenizer_config\.json: not the settings of a tokenizer"),
        (
            CONFIG_FILE,
            b'{"eos_token": "<eos>"}',
            r"tokenizer_config\.json: eos_token '<eos>' is not in tokenizer\.json",
        ),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    save(tmp_path, fitted("bytes")[1])
    path = tmp_path / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-100] if content == b"cut" else content)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


# Made elsewhere


def test_a_pretrained_tokenizer_adds_and_cuts_nothing(tmp_path: Path) -> None:
    folder = sentencepiece_like(tmp_path / "llama", eos_token={"content": "</s>", "lstrip": False})
    raw = Tokenizer.from_file(str(folder / FILE))
    assert len(raw.encode(CODE[:1000]).ids) == 12
    tokenizer = Pretrained(str(folder))
    stored = tokenizer.fit(NoText())
    assert stored.end_of_text == 2
    [ids, spelled] = tokenizer.encoder(stored)([CODE[:1000], "a</s>"])
    assert stored.decode(ids.tolist()) == CODE[:1000]
    assert 1 not in ids
    assert 2 not in spelled
    save(tmp_path, stored)
    assert load(tmp_path).tokenizer.encode(CODE[:1000]).ids == ids.tolist()


@pytest.mark.parametrize(
    ("settings_there", "asked", "found"),
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
    settings_there: dict[str, Any], asked: str | None, found: int | None, tmp_path: Path
) -> None:
    folder = sentencepiece_like(tmp_path / "llama", **settings_there)
    for path in (folder, folder / FILE):
        assert Pretrained(str(path), asked).fit(NoText()).end_of_text == found
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<s>"}}')
    if "eos_token" not in settings_there and asked == "auto":
        assert Pretrained(str(folder), asked).fit(NoText()).end_of_text == 1


def test_mistakes_about_pretrained_tokenizers_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sentencepiece_like(tmp_path / "llama")
    for path in ("missing/tokenizer.json", "./missing", "~/missing", "a/b/c", ""):
        with pytest.raises(ValueError, match=rf"^prepare.tokenizer.path={path}: no such file or folder"):
            Pretrained(path)
    with pytest.raises(
        ValueError, match=r"^prepare.tokenizer.end_of_text=<eos>: '<eos>' is not .*</s>, <s>, <unk>.* null"
    ):
        Pretrained(str(folder), "<eos>").fit(NoText())
    (folder / CONFIG_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"^prepare.tokenizer.path=.*llama: .*tokenizer_config.json: not the settings"):
        Pretrained(str(folder)).fit(NoText())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^prepare.tokenizer.path=.*empty: no tokenizer.json in it, nor"):
        Pretrained(str(tmp_path / "empty")).fit(NoText())
    characters = Characters().fit(Texts("abc"))
    characters.tokenizer.save(str(tmp_path / "characters.json"))
    with pytest.raises(ValueError, match=r"^prepare.tokenizer.end_of_text=auto: .*it has no special tokens.*null"):
        Pretrained(str(tmp_path / "characters.json")).fit(NoText())
    (tmp_path / "empty" / "tokenizer.model").write_bytes(b"x")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"^prepare.tokenizer.path=.*pip install 'lmtrain\[transformers\]'"):
        Pretrained(str(tmp_path / "empty")).fit(NoText())


def test_a_tokenizer_of_the_hub_is_fetched_or_told_to_be_missing(tmp_path: Path) -> None:
    """With a cache as an earlier download leaves it, and no network."""
    cached = tmp_path / "cache" / "models--lmtrain--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots").mkdir()
    sentencepiece_like(cached / "snapshots" / ("0" * 40), eos_token="</s>")
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from lmtrain.data.tokenizer import Pretrained
print(Pretrained("lmtrain/tiny").fit(None).end_of_text)
for name in ("lmtrain/nothing", "not a name"):
    try:
        Pretrained(name).fit(None)
    except ValueError as error:
        print(error)
assert "torch" not in sys.modules
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found, missing, no_name = done.stdout.splitlines()
    assert found == "2"
    assert missing.startswith(
        f"prepare.tokenizer.path=lmtrain/nothing: no such file or folder in {tmp_path}, and not to"
    )
    assert no_name.startswith("prepare.tokenizer.path=not a name: no such file")


def test_a_folder_without_tokenizer_json_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, stored = fitted("bpe")
    stored.tokenizer.model.save(str(tmp_path))  # vocab.json and merges.txt, as GPT-2 was published
    (tmp_path / CONFIG_FILE).write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    converted = Pretrained(str(tmp_path)).fit(NoText())
    assert converted.end_of_text == 0
    assert [converted.encode(text) for text in SAMPLES] == [stored.encode(text) for text in SAMPLES]
    monkeypatch.setattr(pretrained_tokenizer, "_CONVERT", "raise OSError('no such class')")
    with pytest.raises(ValueError, match=r"^prepare.tokenizer.path=.*transformers could not make one .*no such class"):
        Pretrained(str(tmp_path)).fit(NoText())


def test_mistakes_about_tiktoken_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"^prepare.tokenizer.encoding=gpt5: no such encoding; there are .*cl100k_base"
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


# Cutting


@cache
def encoders() -> list[Encode]:
    return [kind.encoder(stored) for kind, stored in map(fitted, ["bpe", *ENCODINGS])]


def same_tokens(text: str, pieces: list[str]) -> bool:
    encoded = [encode([text, *pieces]) for encode in encoders()]
    return all(whole.tolist() == np.concatenate(of_pieces).tolist() for whole, *of_pieces in encoded)


LETTERS = st.characters(categories=["L", "N"], max_codepoint=0xFFFF)


@given(before=TEXTS, letter=LETTERS, newline=st.sampled_from("\n\r"), after=TEXTS)
@settings(max_examples=200, deadline=None)
def test_tokens_end_where_a_newline_follows_a_letter(before: str, letter: str, newline: str, after: str) -> None:
    assert same_tokens(before + letter + newline + after, [before + letter, newline + after])


@given(before=TEXTS, last=st.sampled_from(PARTS[0]) | LETTERS, space=st.sampled_from(" \t\u3000\x85"), after=TEXTS)
@settings(max_examples=200, deadline=None)
def test_tokens_end_where_a_space_follows_none(before: str, last: str, space: str, after: str) -> None:
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
        ("ab\ncd.\nef. g", 10, 10),  # none in the last half, but a space after none
        ("ab. .\n  ..", 9, 7),  # neither: before any whitespace
        ("abcdefghij", 6, 6),  # none at all
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
