"""Checkpoints are restored bit for bit, broken ones are set aside, and the right ones are kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmtrain.checkpoint.files import MANIFEST, Checkpoint, load_checkpoint, verify_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder, Retention
from lmtrain.errors import NonFiniteStateError


def a_checkpoint(seed: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 7, generator=generator)
    return Checkpoint(
        tensors={
            "model": {
                "a": weight,
                "tied": weight,
                "half": weight.bfloat16(),
                "strided": weight.t(),
                "overlapping": weight[2:],
                "empty": torch.zeros(0),
                "mask": torch.full((2,), -torch.inf),
            },
            "optimizer": {"a/exp_avg": weight.double(), "a/step": torch.tensor(3.0)},
            "rng-0": {"torch": torch.get_rng_state()},
        },
        state={"run_id": "mine", "train": {"step": seed, "best_val_loss": None}, "plain": [1, 2.5, "x"]},
        unchecked=frozenset({"model/mask"}),
    )


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints", run_id="mine")


def save(folder: CheckpointFolder, step: int, best_step: int | None = None, newest: int = 2) -> Path:
    return folder.save(step, a_checkpoint(step), Retention(newest, best_step=best_step))


def entries(folder: CheckpointFolder) -> list[str]:
    return sorted(entry.name for entry in folder.path.iterdir())


def test_a_saved_checkpoint_is_restored_bit_for_bit(folder: CheckpointFolder) -> None:
    written, read = a_checkpoint(3), load_checkpoint(save(folder, 3))
    assert read.state == written.state
    assert read.tensors.keys() == written.tensors.keys()
    for name, tensors in written.tensors.items():
        assert read.tensors[name].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert read.tensors[name][key].dtype == tensor.dtype
            assert torch.equal(read.tensors[name][key], tensor)


def test_the_files_are_only_safetensors_and_json(folder: CheckpointFolder) -> None:
    path = save(folder, 3)
    assert sorted(file.name for file in path.iterdir()) == [
        MANIFEST,
        "model.safetensors",
        "optimizer.safetensors",
        "rng-0.safetensors",
        "state.json",
    ]
    assert not [file for file in folder.path.iterdir() if file.name.startswith(".tmp")]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_the_umask_sets_the_mode_of_every_file(folder: CheckpointFolder, umask: int) -> None:
    before = os.umask(umask)
    try:
        saved = save(folder, 3)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in saved.iterdir()} == {0o666 & ~umask}


def test_newest_and_best_are_kept_and_linked(folder: CheckpointFolder) -> None:
    for step in (10, 20, 30, 40, 50):
        save(folder, step, best_step=20 if step >= 20 else 10)
    assert folder.steps() == [20, 40, 50]
    assert os.readlink(folder.path / "latest") == "step-00000050"
    assert os.readlink(folder.path / "best") == "step-00000020"
    latest = folder.load_latest()
    assert latest is not None
    assert latest.state["train"]["step"] == 50


def test_a_valid_checkpoint_is_never_written_again(folder: CheckpointFolder) -> None:
    path = save(folder, 10)
    before = (path / "model.safetensors").stat().st_mtime_ns, (path / MANIFEST).read_bytes()
    folder.save(10, a_checkpoint(99), Retention(2))
    assert before == ((path / "model.safetensors").stat().st_mtime_ns, (path / MANIFEST).read_bytes())


@pytest.mark.slow
def test_a_save_that_fails_keeps_earlier_checkpoints(folder: CheckpointFolder, tmp_path: Path) -> None:
    save(folder, 10)
    # A write beyond the limit fails in the middle of a file, as on a full disk.
    script = f"""
import resource, signal, torch
from pathlib import Path
from lmtrain.checkpoint.files import Checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder, Retention
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
folder = CheckpointFolder(Path({str(folder.path)!r}))
try:
    folder.save(20, Checkpoint({{"model": {{"w": torch.zeros(100_000)}}}}), Retention(newest=1))
except Exception as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("refused:"), done.stderr
    assert entries(folder) == ["latest", "step-00000010"]
    verify_checkpoint(folder.at(10))


def test_leftovers_of_a_kill_are_removed(folder: CheckpointFolder) -> None:
    save(folder, 10)
    (folder.path / ".tmp-latest").symlink_to("step-00000010")
    (folder.path / ".tmp-step-00000020").mkdir()
    (folder.path / ".tmp-step-00000020" / "model.safetensors").write_bytes(b"half")
    (folder.path / ".tmp-del-step-00000005").mkdir()
    save(folder, 20)
    assert entries(folder) == ["latest", "step-00000010", "step-00000020"]


def test_other_names_with_the_prefix_of_a_leftover_stay(folder: CheckpointFolder, tmp_path: Path) -> None:
    save(folder, 10)
    (tmp_path / "mine").mkdir()
    names = [".tmp-", ".tmp-notes", ".tmp-step-5", ".tmp-step-00000020.bak", ".tmp-del-x", ".tmp-del-", ".tmp-best.txt"]
    for name in names:
        (folder.path / name).mkdir()
    (folder.path / ".tmp-link").symlink_to(tmp_path / "mine")
    (folder.path / ".tmp-del-step-00000030").symlink_to(tmp_path / "mine")
    save(folder, 20)
    kept = {".tmp-link", ".tmp-del-step-00000030", *names}
    assert set(entries(folder)) == {"latest", "step-00000010", "step-00000020", *kept}


def test_a_lack_of_disk_space_is_detected_before_writing(folder: CheckpointFolder) -> None:
    folder.path.mkdir()
    huge = torch.zeros(1, dtype=torch.int32).expand(2**50)  # takes no memory, but would take 4 PB on the disk
    with pytest.raises(OSError, match="GB are free"):
        folder.save(1, Checkpoint({"model": {"w": huge}}), Retention(1))
    assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(1), [70]),
        (Retention(3), [50, 60, 70]),
        (Retention(9), [10, 20, 30, 40, 50, 60, 70]),
        (Retention(1, every=30), [30, 60, 70]),
        (Retention(1, best_step=20), [20, 70]),
        (Retention(1, best_step=25), [70]),  # step 25 was never saved
        (Retention(1, protected=frozenset({10, 40, 45})), [10, 40, 70]),
        (Retention(2, every=30, best_step=20, protected=frozenset({10})), [10, 20, 30, 60, 70]),
    ],
)
def test_retention_keeps_the_right_checkpoints(folder: CheckpointFolder, retention: Retention, kept: list[int]) -> None:
    for step in range(10, 70, 10):
        save(folder, step, newest=9)
    folder.save(70, a_checkpoint(70), retention)
    assert folder.steps() == kept
    for step in kept:
        assert load_checkpoint(folder.at(step)).state["train"]["step"] == step
    assert os.readlink(folder.path / "latest") == "step-00000070"


def test_the_checkpoint_that_a_run_resumed_from_is_kept(folder: CheckpointFolder) -> None:
    save(folder, 10)
    resumed = CheckpointFolder(folder.path, run_id="mine")
    assert resumed.load_latest() is not None
    for step in (20, 30, 40):
        save(resumed, step, newest=1)
    assert resumed.steps() == [10, 40]
    again = CheckpointFolder(folder.path, run_id="mine")
    assert again.load_latest() is not None
    save(again, 50, newest=1)
    assert again.steps() == [40, 50]


def test_checkpoints_of_other_runs_are_never_removed(
    folder: CheckpointFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = CheckpointFolder(tmp_path / "other", run_id="mine")
    save(other, 5)  # it has the same id, but is reached through a link and so is not in this folder
    save(folder, 10)
    (folder.path / "step-00000005").symlink_to(other.at(5))
    (folder.path / "step-00000006").symlink_to("nowhere")
    folder.save(20, Checkpoint({}, {"run_id": "theirs"}), Retention(9))
    folder.save(30, Checkpoint({}, {}), Retention(9))
    save(folder, 40, newest=1)
    assert folder.steps() == [5, 6, 20, 30, 40]
    for step in (5, 6, 20, 30):
        assert f"step-{step:08d} belongs to another run and is not removed" in caplog.text
    folder.discard_after(4)
    assert folder.steps() == [5, 6, 20, 30]
    verify_checkpoint(other.at(5))
    verify_checkpoint(folder.at(5))


def test_a_broken_link_is_set_aside(folder: CheckpointFolder) -> None:
    save(folder, 10)
    (folder.path / "step-00000020").symlink_to("nowhere")
    assert CheckpointFolder(folder.path).load_latest() is not None
    (folder.path / "step-00000020").symlink_to("nowhere")
    verify_checkpoint(save(folder, 20))
    assert folder.broken() == ["broken-step-00000020-0", "broken-step-00000020-1"]


def test_folders_with_other_names_are_no_checkpoints(folder: CheckpointFolder) -> None:
    shutil.copytree(save(folder, 10), folder.path / "step-10")
    for name in ("step-20", "step-000000020", "step-000000xx", "step-00000020.old", "step-٠٠٠٠٠٠٢٠"):
        os.mkdir(bytes(folder.path) + b"/" + name.encode())  # as bytes, for locales without these digits
    assert folder.steps() == [10]
    save(folder, 123_456_789, newest=1)
    assert folder.steps() == [123_456_789]
    assert folder.load_latest() is not None


def test_discard_after_removes_later_checkpoints(folder: CheckpointFolder) -> None:
    for step in (10, 20, 30, 40):
        save(folder, step, newest=9)
    folder.discard_after(20)
    assert folder.steps() == [10, 20]
    assert os.readlink(folder.path / "latest") == "step-00000020"
    assert [name for name in entries(folder) if name.startswith(".tmp")] == []
    folder.discard_after(20)
    assert folder.steps() == [10, 20]


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("file", ["model", "optimizer"])
def test_a_state_that_is_not_finite_is_refused(
    folder: CheckpointFolder, file: str, dtype: torch.dtype, number: float
) -> None:
    save(folder, 10)
    save(folder, 20)
    before = entries(folder)
    checkpoint = a_checkpoint(30)
    bad = torch.zeros(3, 1001, dtype=dtype)
    bad[1, 500] = number
    tensors = {**checkpoint.tensors, file: {**checkpoint.tensors[file], "bad": bad}}
    with pytest.raises(NonFiniteStateError, match=f"^{file}/bad has numbers that are not finite"):
        folder.save(30, Checkpoint(tensors, checkpoint.state, checkpoint.unchecked), Retention(1))
    assert entries(folder) == before
    allowed = checkpoint.unchecked | {f"{file}/bad"}
    read = load_checkpoint(folder.save(30, Checkpoint(tensors, checkpoint.state, allowed), Retention(1)))
    assert torch.equal(read.tensors[file]["bad"].view(torch.uint8), bad.view(torch.uint8))


def test_the_largest_finite_numbers_are_saved(folder: CheckpointFolder) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    edges = {
        str(dtype): torch.tensor([torch.finfo(dtype).min, torch.finfo(dtype).max], dtype=dtype) for dtype in dtypes
    }
    others = {"ints": torch.tensor([2**62, -1]), "bools": torch.tensor([True]), "none": torch.zeros(0, 3)}
    read = load_checkpoint(folder.save(1, Checkpoint({"model": {**edges, **others}}), Retention(1)))
    for name, tensor in {**edges, **others}.items():
        assert torch.equal(read.tensors["model"][name], tensor)


def test_a_folder_without_checkpoints_loads_nothing(folder: CheckpointFolder) -> None:
    assert folder.load_latest() is None
    assert folder.steps() == []
