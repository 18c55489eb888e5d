"""Tries a `tokenizer.json` in a separate process, because some files crash the process that loads or uses them.

On a hostile file, the tokenizers library may panic, abort, or fill the memory. This file is also the script of the
separate process; as a script it imports nothing from lmtrain.
"""

import contextlib
import json
import math
import os
import resource
import subprocess
import sys
from functools import lru_cache
from typing import Any

CPU_SECONDS = 60  # the largest tokenizers need a few seconds
WAIT_SECONDS = 600  # long enough for a busy machine
ADDRESS_SPACE = 4 << 30
MAX_GROWTH = 1_000  # characters that the normalizer or decoder may produce from one character
MAX_TOKEN_CHARS = 10_000
TRIED_TOKENS = 2_000
MAX_ERROR_CHARS = 200
TEXT = f"The quick brown fox, 1234.5 times: ÄÖ é 你好 🙂 <x> ##a ▁b\n\n\t  end {'a' * 200}"


class TokenizerRefusedError(ValueError):
    """Raised for a tokenizer that can't be used; the message says why."""


@lru_cache(maxsize=2)  # a process loads the same tokenizer several times
def try_tokenizer(content: bytes) -> None:
    """Load and use the tokenizer of a `tokenizer.json` in a process with limits of time and memory.

    Raises:
        TokenizerRefusedError: the library can't read it, it makes texts too long, or the process failed.
    """
    # One thread, because each further thread would reserve address space.
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
    command = [sys.executable, "-P", __file__]
    try:
        done = subprocess.run(
            command, input=content, env=environment, capture_output=True, timeout=WAIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TokenizerRefusedError(f"not loaded within {WAIT_SECONDS} s") from error
    except OSError as error:
        raise TokenizerRefusedError(f"can't start a process to try it: {error}") from error
    if done.returncode:
        printed, errors = (text.decode(errors="replace").strip().splitlines() for text in (done.stdout, done.stderr))
        reason = f": {errors[-1][:MAX_ERROR_CHARS]}" if errors else ""
        raise TokenizerRefusedError(printed[-1] if printed else f"a process that used it crashed{reason}")


def problem_of(content: bytes) -> str | None:
    """Return what is wrong with a tokenizer, or None. The calling process may crash, or need a long time."""
    from tokenizers import Tokenizer  # a caller of `try_tokenizer` may not need it

    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing more precise
        return str(error)
    for part in (tokenizer.normalizer, tokenizer.decoder):
        if part is not None and growth(json.loads(part.__getstate__())) > MAX_GROWTH:
            return f"its {type(part).__name__} would make more than {MAX_GROWTH:,} characters from one"
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if any(len(token) > MAX_TOKEN_CHARS for token, _ in tokens):
        return f"it has a token of more than {MAX_TOKEN_CHARS:,} characters"
    tokenizer.no_truncation()
    tokenizer.no_padding()
    first = tokens[:TRIED_TOKENS]
    for text in (TEXT, " ".join(token for token, _ in first)):
        with contextlib.suppress(Exception):  # for example an unknown character; a panic is not an Exception
            tokenizer.encode_batch_fast([text], add_special_tokens=False)
    tokenizer.decode([number for _, number in first])
    return None


def growth(node: Any) -> int:
    """Return how many characters a part of a tokenizer, given as JSON, may make from one character."""
    if isinstance(node, list):
        factor = 1
        for item in node:
            factor = min(factor * growth(item), MAX_GROWTH + 1)
        return factor
    if not isinstance(node, dict):
        return 1
    if node.get("type") == "Replace":
        pattern = node["pattern"].get("String", "")
        if not pattern:  # a regular expression may match before every character
            return 1 + len(node["content"])
        return max(1, math.ceil(len(node["content"]) / len(pattern)))
    if node.get("type") == "Prepend":
        return 1 + len(node["prepend"])
    return growth(list(node.values()))


def _main() -> None:
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_AS: ADDRESS_SPACE, resource.RLIMIT_CPU: CPU_SECONDS}
    for kind, most in limits.items():
        _, hard = resource.getrlimit(kind)
        # macOS refuses an address space below the current one, and a sandbox may refuse any limit.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    if problem := problem_of(sys.stdin.buffer.read()):
        sys.stdout.write(f"{problem}\n")
        sys.exit(1)


if __name__ == "__main__":
    _main()
