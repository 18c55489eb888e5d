"""Encodes texts to the bytes of tokens on all cores. The result does not depend on the number of processes."""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmtrain.data.meta import DTYPES, smallest_dtype
from lmtrain.data.stored_tokenizer import Encode, load_tokenizer
from lmtrain.data.text.holdout import SplitText
from lmtrain.data.tokenizer import CorpusTokenizer
from lmtrain.data.writing.lost_text import LostTextMeter
from lmtrain.errors import DataError

BATCH_BYTES = 2 << 20  # text that a process gets at once
BATCHES_AHEAD = 3  # batches in flight per process
PATIENCE_S = 5.0  # time to wait for a task before checking that the pool is alive
PROCESSES_FROM_BYTES = 16 << 20  # a smaller corpus is done before processes have started; threads encode it


class TextBatch(NamedTuple):
    """Some texts, and the position of the source after them."""

    texts: list[SplitText]
    position: Any


@dataclass
class EncodedTexts:
    """The encoded texts of one split."""

    data: bytes = b""
    tokens: int = 0
    max_id: int = 0
    documents: int = 0
    bytes: int = 0
    checked_bytes: int = 0  # bytes checked for text without a token
    lost_bytes: int = 0
    text_hashes: list[Any] = field(default_factory=list)  # SHA-256 of each text


class Encoder:
    """Encodes batches of texts with the tokenizer that is stored in a folder."""

    def __init__(self, tokenizer: CorpusTokenizer, folder: Path) -> None:
        stored = load_tokenizer(folder)
        self.encode: Encode = tokenizer.encoder(stored)
        self.end_of_text, self.vocab_size = stored.end_of_text, stored.vocab_size
        self.dtype = DTYPES[smallest_dtype(stored.vocab_size)]
        self.lost_text = LostTextMeter(stored)

    def __call__(self, texts: Sequence[SplitText]) -> dict[str, EncodedTexts]:
        end = np.array([] if self.end_of_text is None else [self.end_of_text], np.uint32)
        parts: dict[str, list[Any]] = {}
        chunks: dict[str, EncodedTexts] = {}
        for text, ids in zip(texts, self.encode([text.text for text in texts]), strict=True):
            chunk = chunks.setdefault(text.split, EncodedTexts())
            parts.setdefault(text.split, []).extend((ids, end) if text.ends else (ids,))
            chunk.documents += text.ends
            data = text.text.encode()
            chunk.bytes += len(data)
            chunk.text_hashes.append(hashlib.sha256(data).digest())
        for split, chunk in chunks.items():
            ids = np.concatenate(parts[split])
            chunk.tokens, chunk.max_id = len(ids), int(ids.max(initial=0))
            if chunk.max_id >= self.vocab_size:  # checked before the cast, which would wrap it
                raise DataError(
                    f"the tokenizer made the id {chunk.max_id}, not below its vocabulary size of {self.vocab_size}"
                )
            chunk.data = ids.astype(self.dtype).tobytes()
            lost = self.lost_text([text.text for text in texts if text.split == split])
            chunk.checked_bytes, chunk.lost_bytes = lost
        return chunks


def encode_in_processes(
    batches: Iterable[TextBatch], tokenizer: CorpusTokenizer, folder: Path, workers: int
) -> Iterator[tuple[TextBatch, dict[str, EncodedTexts]]]:
    """Yield the batches, in order, with their encoded texts; `workers` processes encode them.

    Raises:
        OSError: a process died, for example because there was too little memory.
    """
    flying: deque[tuple[TextBatch, Future[dict[str, EncodedTexts]]]] = deque()
    # Spawned, because forking a process that has threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (tokenizer, folder))
    try:
        for batch in batches:
            flying.append((batch, pool.submit(_work, batch.texts)))
            if len(flying) >= BATCHES_AHEAD * workers:
                done, result = flying.popleft()
                yield done, _wait_for(result, pool)
        for done, result in flying:
            yield done, _wait_for(result, pool)
    except BrokenProcessPool as error:
        raise OSError(
            "a process that encodes text was killed, perhaps because there was too little memory; run the same command "
            "again to continue where it stopped; prepare.workers=1 needs the least memory"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _wait_for(result: Future[dict[str, EncodedTexts]], pool: ProcessPoolExecutor) -> dict[str, EncodedTexts]:
    """Return the result of a task. A pool that breaks at the moment when it gets a task may never answer."""
    while True:
        done, _ = wait([result], timeout=PATIENCE_S)
        if done:
            return result.result()
        pool.submit(_do_nothing)  # raises BrokenProcessPool if the pool is broken


def _do_nothing() -> None:
    pass


_encoder: Encoder


def _start_worker(tokenizer: CorpusTokenizer, folder: Path) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _encoder = Encoder(tokenizer, folder)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(texts: Sequence[SplitText]) -> dict[str, EncodedTexts]:
    return _encoder(texts)
