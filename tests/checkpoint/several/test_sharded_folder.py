"""Checkpoints that several processes write together: the parts of all of them, or none."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]

from lmtrain.checkpoint.files import Checkpoint, load_checkpoint, verify_checkpoint
from lmtrain.checkpoint.folder import Retention
from lmtrain.checkpoint.several import sharded_folder
from lmtrain.checkpoint.several.parts import own_tensors, own_values, part_of
from lmtrain.checkpoint.several.sharded_folder import LeadingFolder, PartFolder
from lmtrain.errors import LostRankError, NonFiniteStateError
from lmtrain.parallel.base import Parallel
from lmtrain.parallel.layout import Layout, rows_of_rank
from lmtrain.parallel.peers import Peers
from lmtrain.parallel.world import World

KEEP = Retention(newest=3)
# The optimizer updates `a` by its rows and `b` as a whole, in rank 1; `mask` is a buffer.
MODEL = {"a": torch.randn(7, 3), "b": torch.randn(4, 5), "mask": torch.tensor([1.0, float("inf")])}
OPTIMIZER = {"a/mean": torch.randn(7, 3), "a/step": torch.tensor(5.0), "b/mean": torch.randn(4, 5)}
VALUES = {"b/count": 3}
STATE = {"run_id": "r", "train": {"step": 5}}


class Shared(Parallel):
    """One of several processes that share the model above."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.world = World(rank, ranks, rank)
        self.layout = Layout(
            rank=rank,
            ranks=ranks,
            writes=True,
            rows={name: rows_of_rank(MODEL[name].shape, rank, ranks) for name in ("a", "b")},
            owners={"b": min(1, ranks - 1)},
        )


def part(rank: int, ranks: int) -> Checkpoint:
    """Return what a process has of the model, and writes."""
    shared = Shared(rank, ranks)
    assert shared.layout is not None
    rows, has_b = shared.layout.rows, shared.layout.owners["b"] == rank
    tensors = {
        "model": {"a": rows["a"].view_of(MODEL["a"]), "b": rows["b"].view_of(MODEL["b"]), "mask": MODEL["mask"]},
        "optimizer": {
            "a/mean": rows["a"].view_of(OPTIMIZER["a/mean"]),
            "a/step": OPTIMIZER["a/step"],
            **({"b/mean": OPTIMIZER["b/mean"]} if has_b else {}),
        },
        "rng-0": {"torch": torch.arange(3)},
    }
    return part_of(Checkpoint(tensors, STATE, frozenset({"model/mask"})), shared)


def save_together(
    folder: Path, ranks: int, change: Callable[[int, Checkpoint], Checkpoint] = lambda rank, part: part, saves: int = 1
) -> list[Any]:
    """Save in a thread for each process; return the error of each, or None."""
    store, errors = HashStore(), [None] * ranks

    def work(rank: int) -> None:
        peers = Peers(World(rank, ranks, rank), store)
        own = LeadingFolder(folder, "r", peers, ranks) if rank == 0 else PartFolder(folder, peers)
        try:
            for number in range(saves):
                own.save(5 + number, change(rank, part(rank, ranks)), KEEP)
        except Exception as error:
            errors[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert store.num_keys() <= 1, "told topics stay in the store"  # the store counts one key of its own
    return errors


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_the_parts_of_all_processes_are_one_checkpoint(tmp_path: Path, ranks: int) -> None:
    assert save_together(tmp_path, ranks, saves=2) == [None] * ranks
    path = tmp_path / "step-00000006"
    verify_checkpoint(path)
    assert len([*path.glob("model.shard-*")]) == min(ranks, 4)  # with five, the last one has no rows
    loaded = load_checkpoint(path)
    for file, whole in (("model", MODEL), ("optimizer", OPTIMIZER)):
        assert loaded.tensors[file].keys() == whole.keys()
        for name, tensor in whole.items():
            assert torch.equal(loaded.tensors[file][name], tensor), name
    assert loaded.state["run_id"] == "r"
    assert loaded.tensors["rng-0"].keys() == {"torch"}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_processes_reads_its_own_part(tmp_path: Path, ranks: int) -> None:
    assert save_together(tmp_path, 3) == [None] * 3
    loaded = load_checkpoint(tmp_path / "step-00000005")
    for rank in range(ranks):
        layout = Shared(rank, ranks).layout
        assert layout is not None
        model = own_tensors("model", loaded.tensors["model"], layout)
        assert torch.equal(model["a"], layout.rows["a"].view_of(MODEL["a"]))
        assert torch.equal(model["mask"], MODEL["mask"])
        optimizer = own_tensors("optimizer", loaded.tensors["optimizer"], layout)
        assert torch.equal(optimizer["a/mean"], layout.rows["a"].view_of(OPTIMIZER["a/mean"]))
        assert torch.equal(optimizer["a/step"], OPTIMIZER["a/step"])
        owns_b = layout.owners["b"] == rank
        assert ("b/mean" in optimizer) == owns_b
        assert own_values(VALUES, layout) == (VALUES if owns_b else {})


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_numbers_that_are_not_finite_in_one_part(tmp_path: Path, rank: int) -> None:
    def spoil(of: int, own: Checkpoint) -> Checkpoint:
        if of == rank:
            own.tensors["model"]["a"].fill_(float("nan"))  # rows of a copy
        return own

    MODEL["a"], kept = MODEL["a"].clone(), MODEL["a"]
    try:
        first, *others = save_together(tmp_path, 3, spoil)
    finally:
        MODEL["a"] = kept
    assert isinstance(first, NonFiniteStateError)
    assert (f"rank {rank}" in str(first)) == (rank > 0)
    assert others == [None, None]
    assert [each.name for each in tmp_path.iterdir()] == []


def test_a_part_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = sharded_folder.write_files

    def fail(folder: Path, own: Checkpoint, *, with_state: bool = True) -> Any:
        if not with_state and own.parts["model"][0] == 2:
            raise OSError(28, "No space left on device")
        return write(folder, own, with_state=with_state)

    monkeypatch.setattr(sharded_folder, "write_files", fail)
    first, *others = save_together(tmp_path, 3)
    assert isinstance(first, OSError)
    assert "rank 2" in str(first)
    assert "No space left" in str(first)
    assert others == [None, None]
    assert [*tmp_path.iterdir()] == []


def test_a_checkpoint_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    assert save_together(tmp_path, 2) == [None, None]
    before = (tmp_path / "step-00000005" / "MANIFEST.json").stat().st_mtime_ns
    assert save_together(tmp_path, 2) == [None, None]
    assert (tmp_path / "step-00000005" / "MANIFEST.json").stat().st_mtime_ns == before


def test_a_process_that_has_failed_ends_a_save(tmp_path: Path) -> None:
    store = HashStore()
    Peers(World(1, 2, 1), store).fail("no memory")
    with pytest.raises(LostRankError, match="no memory"):
        LeadingFolder(tmp_path, "r", Peers(World(0, 2, 0), store), 2).save(5, part(0, 2), KEEP)
    assert [*tmp_path.iterdir()] == []
