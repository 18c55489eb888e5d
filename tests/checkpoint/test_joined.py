"""Files of a checkpoint in parts: joined, read by rows, and refused if rows are missing."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from lmtrain.checkpoint.joined import (
    JoinedTensors,
    first_rows_as_metadata,
    rows_of,
    shape_of,
    sharded_name,
    split_name,
)
from lmtrain.errors import BrokenCheckpointError
from lmtrain.parallel.layout import rows_of_rank

WHOLE = {"matrix": torch.arange(70.0).view(7, 10), "vector": torch.arange(5), "scalar": torch.tensor(3.0)}


def write_parts(folder: Path, count: int, leave_out: int | None = None) -> list[Path]:
    """Write the tensors in so many parts; scalars are in the first one."""
    paths = []
    for number in range(count):
        if number == leave_out:
            continue
        own, first_rows = {}, {}
        for name, tensor in WHOLE.items():
            if tensor.ndim == 0:
                if number == 0:
                    own[name], first_rows[name] = tensor, 0
                continue
            rows = rows_of_rank(tensor.shape, number, count)
            if rows.count:
                own[name], first_rows[name] = rows.view_of(tensor).clone(), rows.first
        paths.append(folder / f"{sharded_name('model', number, count)}.safetensors")
        save_file(own, paths[-1], first_rows_as_metadata(first_rows, own))
    return paths


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_parts_are_joined_to_the_bit(tmp_path: Path, count: int) -> None:
    joined = JoinedTensors.of(write_parts(tmp_path, count))
    assert joined.keys() == WHOLE.keys()
    for name, tensor in WHOLE.items():
        assert torch.equal(joined[name], tensor)
        assert shape_of(joined, name) == tensor.shape == shape_of(WHOLE, name)
    for ranks in range(1, 9):
        for rank in range(ranks):
            for name in ("matrix", "vector"):
                rows = rows_of_rank(WHOLE[name].shape, rank, ranks)
                assert torch.equal(rows_of(joined, name, rows.first, rows.count), rows.view_of(WHOLE[name]))
                assert torch.equal(rows_of(WHOLE, name, rows.first, rows.count), rows.view_of(WHOLE[name]))


def test_a_missing_part_is_found(tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpointError, match="rows 3 to 5 of matrix are in no part"):
        JoinedTensors.of(write_parts(tmp_path, 3, leave_out=1))


@pytest.mark.parametrize("metadata", [None, {"DCP_SHARDING_INFO": "{}"}, {"DCP_SHARDING_INFO": "no JSON"}])
def test_a_part_that_does_not_say_its_rows(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file(WHOLE, tmp_path / "model.shard-00001-of-00001.safetensors", metadata)
    with pytest.raises(BrokenCheckpointError, match="does not say which rows it has"):
        JoinedTensors.of([tmp_path / "model.shard-00001-of-00001.safetensors"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.safetensors", ("model", False)),
        ("model.shard-00002-of-00012.safetensors", ("model", True)),
        ("rng-0.safetensors", ("rng-0", False)),
        ("state.json", ("state.json", False)),
    ],
)
def test_names_of_files(name: str, expected: tuple[str, bool]) -> None:
    assert split_name(name) == expected


def test_torch_reads_the_parts(tmp_path: Path) -> None:
    """The format is that of torch.distributed.checkpoint, which other tools read."""
    write_parts(tmp_path, 3)
    found = {"matrix": torch.zeros(7, 10), "vector": torch.zeros(5, dtype=torch.int64)}
    dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert torch.equal(found["matrix"], WHOLE["matrix"])
    assert torch.equal(found["vector"], WHOLE["vector"])
