"""The prefetcher gives the batches of direct calls in order, raises errors in place, and leaves no thread behind."""

import threading
import time

import pytest
import torch
from support.numbered_tokens import loader

from lmtrain.data.loader import IGNORE
from lmtrain.data.prefetch import MicroBatch, Prefetcher

CPU = torch.device("cpu")


def prefetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture
def stops_its_thread():
    assert prefetching() == []
    yield
    assert prefetching() == []


@pytest.mark.usefixtures("stops_its_thread")
@pytest.mark.parametrize("depth", [1, 8])
@pytest.mark.parametrize("start", [0, 500])
def test_prefetched_batches_equal_those_of_direct_calls(long, depth, start):
    direct = loader(long, batch_size=8, block_size=2)
    with Prefetcher(loader(long, batch_size=8, block_size=2).batch, start, CPU, depth) as batches:
        assert iter(batches) is batches
        for index in range(start, start + 50):
            x, y = direct.batch(index)
            item = next(batches)
            assert torch.equal(item.x, x)
            assert torch.equal(item.y, y)
            assert item.n_targets == 16


@pytest.mark.usefixtures("stops_its_thread")
def test_leaving_stops_the_thread_even_if_the_queue_is_full(long):
    made = threading.Semaphore(0)

    def batch(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        made.release()
        return torch.full((1, 1), index), torch.full((1, 1), index)

    with Prefetcher(batch, 0, CPU, depth=2) as batches:
        assert next(batches).x.item() == 0
        for _ in range(4):  # the one returned, two in the queue, and one that waits for a place
            assert made.acquire(timeout=10)
        assert len(prefetching()) == 1
        assert not made.acquire(timeout=0.1)  # no more are made
        start = time.perf_counter()
    assert time.perf_counter() - start < 30  # it does not hang


@pytest.mark.usefixtures("stops_its_thread")
def test_leaving_with_an_error_stops_the_thread(numbered):
    with pytest.raises(KeyError, match="mine"), Prefetcher(loader(numbered).batch, 0, CPU):
        raise KeyError("mine")


@pytest.mark.usefixtures("stops_its_thread")
@pytest.mark.parametrize("depth", [1, 2, 8])
def test_an_error_is_raised_in_place_of_its_batch(depth):
    def batch(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index == 5:
            raise OSError("disk gone")
        return torch.full((1, 1), index), torch.full((1, 1), index)

    with Prefetcher(batch, 0, CPU, depth) as batches:
        assert [next(batches).x.item() for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(OSError, match="disk gone"):
            next(batches)


@pytest.mark.usefixtures("stops_its_thread")
def test_leaving_before_an_error_is_raised_stops_the_thread():
    def batch(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index == 1:
            raise OSError("disk gone")
        return torch.zeros(1, 1), torch.zeros(1, 1)

    with Prefetcher(batch, 0, CPU, depth=1) as batches:  # the error waits for a place in the queue
        assert len(prefetching()) == 1
    assert isinstance(batches, Prefetcher)


def test_ignored_targets_are_not_counted():
    y = torch.tensor([[1, IGNORE, 0], [IGNORE, IGNORE, -1]])
    item = MicroBatch.of(torch.zeros_like(y), y, pin=False)
    assert item.n_targets == 3
    assert isinstance(item.n_targets, int)


def test_targets_of_a_ragged_split_add_up(numbered):
    split = [MicroBatch.of(x, y, pin=False) for x, y in loader(numbered, batch_size=4, block_size=8).whole_split()]
    assert [item.n_targets for item in split] == [32] * 31 + [1_002 - 31 * 32]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_copies_arrive_unchanged_on_the_gpu(long):
    device = torch.device("cuda")
    direct = loader(long, batch_size=64, block_size=2)
    with Prefetcher(loader(long, batch_size=64, block_size=2).batch, 0, device) as batches:
        items: list[MicroBatch] = [next(batches) for _ in range(200)]  # all before any is checked
    for index, item in enumerate(items):
        x, y = direct.batch(index)
        assert item.x.device.type == "cuda"
        assert torch.equal(item.x.cpu(), x)
        assert torch.equal(item.y.cpu(), y)
        assert item.n_targets == 128
    assert prefetching() == []
