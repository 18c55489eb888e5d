"""Fixtures of the data tests: encodings of tiktoken, and small token files."""

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.numbered_tokens import write
from support.tokenizer_samples import PATTERNS, PLUGIN, ranks_of


@pytest.fixture(scope="module")
def tiktoken_plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install encodings with the real patterns and our own ranks, because the real ranks would have to be fetched."""
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
            ranks = ranks_of(tiktoken_ext.tiny.pattern(name))
            lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
            (folder / "tiktoken_ext" / f"{name}.tiktoken").write_bytes(b"".join(lines))
        yield
    registry._available_plugin_modules.cache_clear()


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 1,003 tokens that count upwards: 125 blocks of 8, their last target, and two more tokens."""
    return write(tmp_path_factory.mktemp("numbered"), train=np.arange(1_003), val=np.arange(500, 600))


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 20,001 tokens: 10,000 blocks of 2, which are more than two chunks of the order."""
    return write(tmp_path_factory.mktemp("long"), train=np.arange(20_001))
