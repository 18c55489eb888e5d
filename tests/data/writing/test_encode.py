"""The pool of encoding processes reports a process that has died."""

import multiprocessing
import os
import signal
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

from lmtrain.data.writing import encode


def test_a_task_that_a_broken_pool_has_lost_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "PATIENCE_S", 0.2)
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    try:
        lost: Future[dict[str, encode.EncodedTexts]] = Future()
        worker = pool.submit(os.getpid).result(timeout=60)
        slow: Future[dict[str, encode.EncodedTexts]] = Future()
        slow.set_result({"train": encode.EncodedTexts(tokens=3)})
        assert encode._wait_for(slow, pool)["train"].tokens == 3
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            encode._wait_for(lost, pool)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
