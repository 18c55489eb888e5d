"""The settings of `parallel` as numbers."""

import pytest

from lmtrain.errors import ConfigError
from lmtrain.plan.world.processes import BFLOAT16, FLOAT32, Processes

FSDP = {"_target_": "lmtrain.parallel.choices.fsdp", "reshard_after_forward": True, "reduce_each_micro_batch": False,
        "param_dtype": None, "reduce_dtype": "float32"}  # fmt: skip


def test_one_process_needs_no_plan_of_processes() -> None:
    assert Processes.of({}) is None
    assert Processes.of({"parallel": {"_target_": "lmtrain.parallel.choices.auto", "world_size": None}}) is None
    assert Processes.of({"parallel": FSDP | {"world_size": 1}}) is None


def test_ddp_has_a_copy_in_every_process() -> None:
    found = Processes.of({"parallel": {"_target_": "lmtrain.parallel.choices.auto", "world_size": 6, "bucket_mb": 10}})
    assert found == Processes(6, bucket_bytes=10 * 2**20)
    assert (found.copies, found.gathers_in_16_bits) == (6, False)
    assert found.describe() == "6 processes with DDP: each has the whole model"


def test_fsdp_has_as_many_copies_as_groups_of_shards() -> None:
    all_share = Processes.of({"parallel": FSDP | {"world_size": 8, "shards": None}})
    assert all_share is not None
    assert (all_share.shards, all_share.copies, all_share.gathered_bytes) == (8, 1, FLOAT32)
    copies = Processes.of({"parallel": FSDP | {"world_size": 8, "shards": 2, "param_dtype": "bfloat16"}})
    assert copies is not None
    assert (copies.shards, copies.copies, copies.gathered_bytes, copies.reduced_bytes) == (2, 4, BFLOAT16, FLOAT32)
    assert copies.gathers_in_16_bits
    assert copies.describe() == "8 processes with FSDP: 4 copies of the model, each shared by 2"


def test_shards_that_do_not_divide_are_an_error_that_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        Processes.of({"parallel": FSDP | {"world_size": 12, "shards": 5}})
    assert str(caught.value) == ("parallel.shards=5: does not divide the 12 processes; give 4 or 6, or null for all")
