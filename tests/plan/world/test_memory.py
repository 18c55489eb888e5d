"""The memory of a process; what real processes hold is compared in tests/benchmark/scaling."""

import pytest

from lmtrain.plan.calls import Operations
from lmtrain.plan.memory import StepCost
from lmtrain.plan.world.memory import BUCKETS, GATHERED, ON_THE_WAY, WHOLE, memory_of_process
from lmtrain.plan.world.processes import BFLOAT16, FSDP, Processes
from lmtrain.plan.world.units import Unit, Units, WholeTensors

ROOT, LAYER, LAYERS = 64 * 16, 32 * 16, 4
UNITS = Units(Unit([(64, 16)]), [Unit([(32, 16)])] * LAYERS)
P = ROOT + LAYERS * LAYER
BUFFERS, ACTIVATIONS = 100, 50_000


def step(activations: int = ACTIVATIONS, update: int = 1000, optimizer: int = 8 * P) -> StepCost:
    """Return the cost of a step of one process with this memory."""
    held = {"weights": 4 * P + BUFFERS, "gradients": 4 * P, "optimizer": optimizer}
    moments = held | {"casts": 2 * P, "activations": activations}, held | {"update": update}
    return StepCost({}, 0, 0.0, 1, (1,), Operations((), 0.0, 0), Operations((), 0.0, 0), moments=moments)


def memory(processes: Processes, micro_batches: int = 1, whole: WholeTensors | None = None) -> dict[str, int]:
    return memory_of_process(step(), processes, UNITS, micro_batches, whole or WholeTensors())


def test_ddp_has_buckets_and_with_accumulation_gradients_beside_them() -> None:
    found = memory(Processes(8))
    assert found == {"weights": 4 * P + BUFFERS, "optimizer": 8 * P, "casts": 2 * P, "activations": ACTIVATIONS,
                     BUCKETS: 4 * P}  # fmt: skip
    assert memory(Processes(8), 2) == found | {"gradients": 4 * P}


def test_fsdp_divides_what_the_model_has_and_gathers_a_part_of_it() -> None:
    found = memory(Processes(8, FSDP, 4))
    assert found == {
        "weights": P + BUFFERS,
        "gradients": P,
        "optimizer": 2 * P,
        "casts": 2 * P,
        "activations": ACTIVATIONS,
        GATHERED: 4 * (ROOT + 2 * LAYER),
        ON_THE_WAY: 3 * 4 * ROOT,
    }
    assert memory(Processes(8, FSDP, 4, reshard=False))[GATHERED] == 4 * P


def test_the_sum_over_micro_batches_is_whole_unless_it_is_sent_each_time() -> None:
    more = memory(Processes(8, FSDP, 4), 2)[ON_THE_WAY] - memory(Processes(8, FSDP, 4))[ON_THE_WAY]
    assert more == 4 * P
    each = Processes(8, FSDP, 4, reduces_each=True)
    assert memory(each, 2) == memory(each)


def test_weights_that_arrive_in_16_bits_need_no_copies() -> None:
    found = memory(Processes(8, FSDP, 4, gathered_bytes=BFLOAT16))
    assert "casts" not in found
    assert found[GATHERED] == 2 * (ROOT + 2 * LAYER)


def test_the_moment_that_needs_more_counts() -> None:
    processes, whole = Processes(4, FSDP, 4), WholeTensors.of({"a": LAYER, "b": LAYER}, 4)
    found = memory_of_process(step(activations=10, update=400_000), processes, UNITS, 1, whole)
    assert found["update"] == 100_000
    assert found[WHOLE] == 3 * 4 * LAYER
    assert GATHERED not in found


def test_the_state_of_whole_tensors_is_that_of_the_busiest_process() -> None:
    whole = WholeTensors.of({"a": LAYER, "b": LAYER, "c": LAYER}, 2)
    assert (whole.numel, whole.most) == (3 * LAYER, 2 * LAYER)
    state = 8 * (P - 3 * LAYER) + 4 * 3 * LAYER  # AdamW for rows, and one momentum for whole tensors
    found = memory_of_process(step(optimizer=state), Processes(2, FSDP, 2), UNITS, 1, whole)
    assert found["optimizer"] == 4 * (P - 3 * LAYER) + 4 * 2 * LAYER


@pytest.mark.parametrize("shards", [1, 3, 7, 64, 1000])
def test_all_shares_together_are_the_model_and_at_most_a_row_more(shards: int) -> None:
    local = UNITS.local_numel(shards)
    assert P <= local * shards
    assert local <= P / shards + 16 * (1 + LAYERS)
