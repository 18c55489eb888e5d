"""Tokenizers are loaded from the hub, and made from folders without a tokenizer.json."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tokenizer_samples import SAMPLES, NoText, fitted, sentencepiece_like

from lmtrain.data import pretrained_tokenizer
from lmtrain.data.stored_tokenizer import TOKENIZER_CONFIG_FILE
from lmtrain.data.tokenizer import Pretrained

pytestmark = pytest.mark.usefixtures("tiktoken_plugin")


def test_a_tokenizer_of_the_hub_is_found_or_reported_as_missing(tmp_path: Path) -> None:
    """There is no network, but the cache of an earlier download."""
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
        f"prepare.tokenizer.path=lmtrain/nothing: no such file or folder in {tmp_path}, and not a"
    )
    assert no_name.startswith("prepare.tokenizer.path=not a name: no such file")


@pytest.mark.slow
def test_a_folder_without_tokenizer_json_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, stored = fitted("bpe")
    stored.tokenizer.model.save(str(tmp_path))  # vocab.json and merges.txt, the files of GPT-2
    (tmp_path / TOKENIZER_CONFIG_FILE).write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    converted = Pretrained(str(tmp_path)).fit(NoText())
    assert converted.end_of_text == 0
    assert [converted.encode(text) for text in SAMPLES] == [stored.encode(text) for text in SAMPLES]
    monkeypatch.setattr(pretrained_tokenizer, "_CONVERT", "raise OSError('no such class')")
    with pytest.raises(ValueError, match=r"^prepare.tokenizer.path=.*transformers could not make one .*no such class"):
        Pretrained(str(tmp_path)).fit(NoText())
