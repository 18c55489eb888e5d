"""The saver writes the state at the time of the call, while the training loop continues."""

import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.checkpoints import a_checkpoint, value

from lmtrain.checkpoint.files import Checkpoint, load_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder, Retention
from lmtrain.checkpoint.saver import Saver
from lmtrain.errors import NonFiniteStateError

NEWEST_TWO = Retention(2)
NOT_FINITE = Checkpoint({"model": {"w": torch.tensor([torch.nan])}})


class Gate:
    """A `before_commit` that waits until a test opens it."""

    def __init__(self) -> None:
        self.reached, self.open, self.passed = threading.Event(), threading.Event(), 0

    def __call__(self) -> None:
        self.reached.set()
        assert self.open.wait(60)
        self.passed += 1


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints")


def test_the_loop_continues_while_the_save_runs(folder: CheckpointFolder, gate: Gate) -> None:
    with Saver(folder, gate) as saver:
        saver.save(1, a_checkpoint(1.0), NEWEST_TWO)
        assert gate.reached.wait(60)
        saver.check()  # does not wait, and nothing has failed
        assert folder.steps() == []
        gate.open.set()
        saver.wait()
        assert folder.steps() == [1]


def test_the_state_at_the_time_of_the_call_is_saved(folder: CheckpointFolder, gate: Gate) -> None:
    weight = torch.randn(5, 7)
    tensors = {
        "weight": weight,
        "tied": weight,
        "strided": weight.t(),
        "overlapping": weight[2:, 1:],
        "expanded": torch.randn(1, 3).expand(4, 3),
        "half": torch.randn(9).bfloat16(),
        "scalar": torch.tensor(3.0),
        "ints": torch.arange(5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    state = {"train": {"step": 1, "losses": [1.0, 2.0]}}
    expected = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    with Saver(folder, gate) as saver:
        saver.save(1, Checkpoint({"model": tensors}, state), NEWEST_TWO)
        for name, tensor in tensors.items():
            if name != "expanded":  # an expanded tensor can't be written to
                tensor.data.zero_()
        tensors["expanded"] = tensors["ints"]
        del tensors["half"]
        state["train"]["losses"].append(3.0)
        gate.open.set()
    read = load_checkpoint(folder.at(1))
    assert read.state == {"train": {"step": 1, "losses": [1.0, 2.0]}}
    assert read.tensors["model"].keys() == expected.keys()
    for name, tensor in expected.items():
        assert read.tensors["model"][name].dtype == tensor.dtype
        assert torch.equal(read.tensors["model"][name], tensor), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_state_of_a_gpu_at_the_time_of_the_call_is_saved(folder: CheckpointFolder) -> None:
    state = {f"w{i}": torch.full((4_000_000,), 1.0, device="cuda") for i in range(8)}
    state["strided"] = torch.arange(6.0, device="cuda").view(2, 3).t()
    expected = {name: tensor.cpu() for name, tensor in state.items()}
    with Saver(folder) as saver:
        saver.reserve(Checkpoint({"model": state}))
        for step in (1, 2, 3):
            saver.save(step, Checkpoint({"model": state}), Retention(9))
            for tensor in state.values():  # changed at once, as by the next step
                tensor.add_(1.0)
    for step in (1, 2, 3):
        read = load_checkpoint(folder.at(step)).tensors["model"]
        for name, tensor in expected.items():
            assert torch.equal(read[name], tensor + (step - 1)), (step, name)


def test_the_second_save_waits_for_the_first(folder: CheckpointFolder, gate: Gate) -> None:
    with Saver(folder, gate) as saver:
        saver.save(1, a_checkpoint(1.0), NEWEST_TWO)
        second = threading.Thread(target=saver.save, args=(2, a_checkpoint(2.0), NEWEST_TWO))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        gate.open.set()
        second.join(60)
        assert value(folder, 1) == 1.0  # complete before the second save begins
    assert value(folder, 2) == 2.0
    assert gate.passed == 2


def test_leaving_the_context_waits_for_the_last_save(folder: CheckpointFolder) -> None:
    with Saver(folder, lambda: time.sleep(0.3)) as saver:
        saver.save(1, a_checkpoint(1.0), NEWEST_TWO)
    assert folder.steps() == [1]


def test_buffers_follow_changes_of_shape_and_dtype(folder: CheckpointFolder) -> None:
    with Saver(folder) as saver:
        for step, size in enumerate([4, 9, 9, 2], 1):
            saver.save(step, a_checkpoint(float(step), size), Retention(9))
        doubles = Checkpoint({"model": {"w": torch.full((2,), 0.1, dtype=torch.float64)}})
        saver.save(5, doubles, Retention(9))
    assert [value(folder, step) for step in (1, 2, 3, 4)] == [1.0, 2.0, 3.0, 4.0]
    assert torch.equal(load_checkpoint(folder.at(5)).tensors["model"]["w"], doubles.tensors["model"]["w"])


def test_saves_use_the_reserved_memory(folder: CheckpointFolder) -> None:
    with Saver(folder) as saver:
        saver.reserve(a_checkpoint(1.0))
        saver.wait()
        reserved = {name: buffer.data_ptr() for name, buffer in saver._buffers.items()}
        assert reserved.keys() == {"model/w"}
        for step in (1, 2):
            saver.save(step, a_checkpoint(float(step)), NEWEST_TWO)
        assert {name: buffer.data_ptr() for name, buffer in saver._buffers.items()} == reserved
    assert (value(folder, 1), value(folder, 2)) == (1.0, 2.0)


def unwritable(folder: CheckpointFolder) -> CheckpointFolder:
    """Put a file where the folder should be, so that not even root can write there."""
    folder.path.write_text("in the way")
    return folder


def test_reserving_memory_keeps_no_tensor(folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    saver, work = Saver(folder), []
    monkeypatch.setattr(saver, "_start", work.append)  # the thread has not begun
    tensor = torch.ones(3)
    kept = weakref.ref(tensor)
    saver.reserve(Checkpoint({"ema": {"w": tensor}}))
    del tensor
    assert kept() is None
    work[0]()
    assert saver._buffers["ema/w"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("call", ["check", "wait", "save", "reserve", "exit"])
def test_an_error_is_raised_once(folder: CheckpointFolder, call: str) -> None:
    saver = Saver(unwritable(folder))
    saver.save(1, a_checkpoint(1.0), NEWEST_TWO)
    assert saver._thread is not None
    saver._thread.join(60)
    calls = {
        "check": saver.check,
        "wait": saver.wait,
        "save": lambda: saver.save(2, a_checkpoint(2.0), NEWEST_TWO),
        "reserve": lambda: saver.reserve(a_checkpoint(2.0)),
        "exit": lambda: saver.__exit__(None, None, None),
    }
    with pytest.raises(OSError, match="checkpoints"):
        calls[call]()
    saver.check()
    saver.wait()
    with saver:
        pass
    folder.path.unlink()  # the folder is writable again, and the saver works again
    saver.save(3, a_checkpoint(3.0), NEWEST_TWO)
    saver.wait()
    assert folder.steps() == [3]


def test_a_state_that_is_not_finite_is_an_error(folder: CheckpointFolder) -> None:
    with pytest.raises(NonFiniteStateError), Saver(folder) as saver:
        saver.save(1, NOT_FINITE, NEWEST_TWO)
    assert not folder.path.exists()


def test_an_error_of_a_save_does_not_mask_another_error(
    folder: CheckpointFolder, caplog: pytest.LogCaptureFixture
) -> None:
    saver = Saver(unwritable(folder))

    def interrupted() -> None:
        with saver:
            saver.save(1, a_checkpoint(1.0), NEWEST_TWO)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "the last checkpoint could not be saved: FileExistsError" in caplog.text
    saver.wait()  # the error is not reported twice


def test_nothing_is_saved_if_before_commit_fails(folder: CheckpointFolder) -> None:
    seen = []

    def before_commit() -> None:
        seen.append(folder.steps())
        if len(seen) == 2:
            raise OSError("the metrics can't be flushed")

    with Saver(folder, before_commit) as saver:
        saver.save(1, a_checkpoint(1.0), Retention(1))
        saver.wait()
        saver.save(2, a_checkpoint(2.0), Retention(1))
        with pytest.raises(OSError, match="the metrics"):
            saver.wait()
        assert folder.steps() == [1]
        saver.save(3, a_checkpoint(3.0), Retention(1))
    assert seen == [[], [1], [1]]
    assert folder.steps() == [3]
