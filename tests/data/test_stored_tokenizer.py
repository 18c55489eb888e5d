"""A saved tokenizer is loaded equally by lmtrain and transformers, and damaged files are named."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from support.tokenizer_samples import ENCODINGS, LIBRARY, SAMPLES, Texts, fitted, sentencepiece_like

from lmtrain.data.stored_tokenizer import (
    END_OF_TEXT,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    load_tokenizer,
    save_tokenizer,
)
from lmtrain.data.tokenizer import Characters

pytestmark = pytest.mark.usefixtures("tiktoken_plugin")


@pytest.mark.parametrize("name", ["bytes", "bpe", "characters", ENCODINGS[1]])
def test_transformers_loads_a_saved_folder(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    stored = fitted(name)[1] if name != "characters" else Characters().fit(Texts(*SAMPLES))
    save_tokenizer(tmp_path, stored)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.end_of_text, again.vocab_size) == (stored.end_of_text, stored.vocab_size)
    assert theirs.eos_token_id == stored.end_of_text
    for text in SAMPLES:
        plain = text.replace(END_OF_TEXT, "")  # transformers would read it as the token
        ids = theirs(plain).input_ids
        assert ids == stored.encode(plain) == again.encode(plain)
        assert theirs.decode(ids) == plain
        assert again.encode(text) == stored.encode(text)
        assert again.decode(again.encode(text)) == text


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from lmtrain.data.stored_tokenizer import save_tokenizer
from lmtrain.data.tokenizer import BPE
class Corpus:
    def train_sample(self, max_bytes): yield Path({str(LIBRARY / "argparse.py")!r}).read_text()
save_tokenizer(Path(sys.argv[1]), BPE(700).fit(Corpus()))
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    for name, threads in (("one", "1"), ("two", "2")):
        (tmp_path / name).mkdir()
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        subprocess.run([sys.executable, "-c", script, tmp_path / name], env=environment, check=True)
    for name in (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    save_tokenizer(tmp_path / "two", load_tokenizer(tmp_path / "one"))
    assert (tmp_path / "one" / TOKENIZER_FILE).read_bytes() == (tmp_path / "two" / TOKENIZER_FILE).read_bytes()
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [TOKENIZER_FILE, TOKENIZER_CONFIG_FILE]


@pytest.mark.parametrize("name", ["bytes", "bpe", ENCODINGS[2]])
def test_a_copy_for_another_process_encodes_the_same(name: str, tmp_path: Path) -> None:
    tokenizer, stored = fitted(name)
    save_tokenizer(tmp_path, stored)
    encode = pickle.loads(pickle.dumps(tokenizer)).encoder(load_tokenizer(tmp_path))
    for ours, theirs in zip(tokenizer.encoder(stored)(SAMPLES), encode(SAMPLES), strict=True):
        assert ours.tolist() == theirs.tolist()
    copied = pickle.loads(pickle.dumps(stored))
    assert copied.encode(SAMPLES[1]) == stored.encode(SAMPLES[1])


def test_without_settings_the_end_of_text_is_a_well_known_token(tmp_path: Path) -> None:
    sentencepiece_like(tmp_path / "known")
    assert load_tokenizer(tmp_path / "known").end_of_text == 2
    stored = Characters().fit(Texts("</s>"))  # has its characters, but no such token
    save_tokenizer(tmp_path, stored)
    (tmp_path / TOKENIZER_CONFIG_FILE).unlink()
    assert load_tokenizer(tmp_path).end_of_text is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (TOKENIZER_FILE, None, r"tokenizer\.json: not a file that the tokenizers library reads .*[Nn]o such file"),
        (TOKENIZER_FILE, b"", r"tokenizer\.json: not a file"),
        (TOKENIZER_FILE, b"cut", r"tokenizer\.json: not a file"),
        (TOKENIZER_FILE, b'{"version": "1.0"}', r"tokenizer\.json: not a file"),
        (TOKENIZER_CONFIG_FILE, b'{"eos_tok', r"tokenizer_config\.json: not the settings of a tokenizer"),
        (TOKENIZER_CONFIG_FILE, b"\xff", r"tokenizer_config\.json: not the settings of a tokenizer"),
        (TOKENIZER_CONFIG_FILE, b"3", r"tokenizer_config\.json: not the settings of a tokenizer"),
        (TOKENIZER_CONFIG_FILE, b'{"eos_token": 3}', r"tokenizer_config\.json: not the settings of a tokenizer"),
        (TOKENIZER_CONFIG_FILE, b'{"eos_token": {}}', r"tokenizer_config\.json: not the settings of a tokenizer"),
        (
            TOKENIZER_CONFIG_FILE,
            b'{"eos_token": "<eos>"}',
            r"tokenizer_config\.json: eos_token '<eos>' is not in tokenizer\.json",
        ),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    save_tokenizer(tmp_path, fitted("bytes")[1])
    path = tmp_path / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-100] if content == b"cut" else content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)
