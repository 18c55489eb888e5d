"""llama.cpp itself loads the files, and gives the same ids, the same logits and the same greedy text.

Its Python package compiles llama.cpp, which takes minutes. The tests run where `LMTRAIN_TEST_LLAMA_CPP` names a Python
that has llama-cpp-python, or where it is installed beside lmtrain.
"""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.exported import loaded

from lmtrain.convert.gguf.export import export_gguf
from lmtrain.data.stored_tokenizer import StoredTokenizer
from lmtrain.machine import is_installed

PYTHON = os.environ.get("LMTRAIN_TEST_LLAMA_CPP") or (sys.executable if is_installed("llama_cpp") else "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="llama-cpp-python is not installed (LMTRAIN_TEST_LLAMA_CPP=PYTHON)"),
]
LENGTH = 40
TEXTS = 10_000
SCRIPT = """
import json, sys
import numpy as np
from llama_cpp import Llama
asked = json.load(open(sys.argv[2]))
model = Llama(sys.argv[1], n_ctx=64, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0)
ids = [model.tokenize(text.encode(), add_bos=False, special=False) for text in asked["texts"]]
tokens = list(asked["prompt"])
model.eval(tokens)
logits = model.scores[len(tokens) - 1].tolist()
while len(tokens) < asked["length"]:
    tokens.append(int(np.argmax(model.scores[len(tokens) - 1])))
    model.eval(tokens[-1:])
answer = {"ids": ids, "tokens": tokens, "logits": logits, "text": model.detokenize(asked["prompt"]).decode()}
json.dump(answer, open(sys.argv[3], "w"))
"""


def asked_of_llama_cpp(path: Path, **asked: Any) -> Any:
    question, answer = path.with_suffix(".question"), path.with_suffix(".answer")
    question.write_text(json.dumps(asked), encoding="utf-8")
    done = subprocess.run([PYTHON, "-c", SCRIPT, path, question, answer], capture_output=True, text=True)
    if done.returncode == -signal.SIGILL:
        pytest.skip("this llama.cpp was compiled for another CPU")
    assert done.returncode == 0, done.stderr
    return json.loads(answer.read_text(encoding="utf-8"))


def random_texts(characters: str, count: int) -> list[str]:
    """Return short texts of words, spaces and characters, without NUL, at which llama.cpp's text ends."""
    chosen = random.Random(0)
    words = [
        "the",
        " the",
        "  ",
        "\n\n",
        "'s",
        "def ",
        "return",
        "123",
        "\t",
        "é",
        "狐",
        "🦊",
        "<|endoftext|>",
        "e\u0301",
    ]
    words = [word for word in words if set(word) <= set(characters)] + list(characters)
    return ["".join(chosen.choices(words, k=chosen.randrange(1, 12))) for _ in range(count)]


@pytest.mark.parametrize("kind", ["bpe", "bytes", "characters"])
@pytest.mark.parametrize(("model", "options"), [("llama", {}), ("gpt2", {"tie_embeddings": False})])
def test_ids_logits_and_greedy_text_are_equal(tmp_path: Path, model: str, kind: str, options: dict[str, Any]) -> None:
    run = loaded(model, kind, **options)
    export_gguf(run, path := tmp_path / "model.gguf", "float32")
    assert run.tokenizer is not None
    prompt = run.tokenizer.encode("import os\n\ndef  main")
    every = "".join(map(chr, [*range(32, 127), 9, 10, 0xE9, 0x301, 0x85, 0x3000, 0x72D0, 0x1F98A, 0x200D]))
    known = "".join(run.tokenizer.tokenizer.get_vocab()) if kind == "characters" else every
    texts = random_texts(known.replace("\0", ""), TEXTS if model == "llama" else 100)
    found = asked_of_llama_cpp(path, texts=texts, prompt=prompt, length=LENGTH)
    assert found["ids"] == [run.tokenizer.encode(text) for text in texts]
    assert found["text"] == "import os\n\ndef  main"
    tokens = list(prompt)
    with torch.no_grad():
        logits = run.model(torch.tensor([tokens]))[0][0, -1]
        while len(tokens) < LENGTH:
            tokens.append(int(run.model(torch.tensor([tokens]))[0][0, -1].argmax()))
    assert found["tokens"] == tokens
    # llama.cpp looks GELU up in a table of float16, whose rounding is 2^-11 of each value.
    tolerance = 1e-5 if model == "llama" else 2.0**-9
    error = (torch.tensor(found["logits"]) - logits).abs().max()
    assert error <= tolerance * max(1.0, float(logits.abs().max()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
def test_smaller_formats_load(tmp_path: Path, dtype: str) -> None:
    run = loaded("llama", "bpe")
    export_gguf(run, path := tmp_path / "model.gguf", dtype)
    assert run.tokenizer is not None
    found = asked_of_llama_cpp(path, texts=[], prompt=run.tokenizer.encode("import os"), length=12)
    assert len(found["tokens"]) == 12


def test_an_added_token_is_found_in_text_unless_it_is_special(tmp_path: Path) -> None:
    run = loaded("llama", "bpe")
    assert run.tokenizer is not None
    run.tokenizer.tokenizer.add_tokens(["<think>"])
    run.tokenizer.tokenizer.add_special_tokens(["<tool>"])
    run = replace(run, tokenizer=StoredTokenizer(run.tokenizer.tokenizer, run.tokenizer.end_of_text))
    assert run.tokenizer is not None
    export_gguf(run, path := tmp_path / "model.gguf", "float32")
    texts = ["<think>", "a <think>\n\n<tool>", "return <think><think>x", "<|endoftext|><think"]
    found = asked_of_llama_cpp(path, texts=texts, prompt=run.tokenizer.encode("a <think> b"), length=6)
    assert found["ids"] == [run.tokenizer.encode(text) for text in texts]
    assert found["text"] == "a <think> b"


def test_a_character_that_the_run_did_not_have_ends_nothing(tmp_path: Path) -> None:
    run = loaded("llama", "characters")
    export_gguf(run, path := tmp_path / "model.gguf", "float32")
    assert run.tokenizer is not None
    found = asked_of_llama_cpp(path, texts=["a\u4e01b"], prompt=run.tokenizer.encode("a"), length=2)
    first, *unknown, last = found["ids"][0]
    assert (first, last) == (run.tokenizer.tokenizer.token_to_id("a"), run.tokenizer.tokenizer.token_to_id("b"))
    assert set(unknown) == {run.tokenizer.vocab_size}
