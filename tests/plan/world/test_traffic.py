"""The bytes that processes send in a step; real processes are counted in tests/benchmark/scaling."""

import pytest

from lmtrain.plan.world.processes import BFLOAT16, FSDP, Processes
from lmtrain.plan.world.traffic import GLOO, sent_in_step, traffic_of_step
from lmtrain.plan.world.units import Unit, Units

ROOT, LAYER, LAYERS = 64 * 16, 32 * 16, 3
UNITS = Units(Unit([(64, 16)]), [Unit([(32, 16)])] * LAYERS)
NUMEL = ROOT + LAYERS * LAYER


def sent(processes: Processes, micro_batches: float = 1, whole: int = 0, **backend: str) -> float:
    return sent_in_step(traffic_of_step(processes, UNITS, micro_batches, whole), **backend)


def test_ddp_sends_all_gradients_once_in_a_step() -> None:
    (all_reduce,) = traffic_of_step(Processes(8, bucket_bytes=1000), UNITS, 5)
    assert all_reduce.sent() == pytest.approx(2 * 7 / 8 * 4 * NUMEL)
    assert all_reduce.calls == -(-4 * NUMEL // 1000)


def test_fsdp_gathers_layers_twice_and_the_root_once() -> None:
    part = 3 / 4 * 4
    assert sent(Processes(4, FSDP, 4)) == pytest.approx(part * (2 * NUMEL - ROOT + NUMEL))
    assert sent(Processes(4, FSDP, 4), 3) == pytest.approx(part * (3 * (2 * NUMEL - ROOT) + NUMEL))


def test_kept_weights_are_gathered_once_in_a_step() -> None:
    assert sent(Processes(4, FSDP, 4, reshard=False), 3) == pytest.approx(3 / 4 * 4 * (NUMEL + NUMEL))


def test_gradients_may_be_sent_after_each_micro_batch() -> None:
    more = sent(Processes(4, FSDP, 4, reduces_each=True), 3) - sent(Processes(4, FSDP, 4), 3)
    assert more == pytest.approx(2 * 3 / 4 * 4 * NUMEL)


def test_16_bits_halve_what_is_sent_in_them() -> None:
    both = Processes(4, FSDP, 4, gathered_bytes=BFLOAT16, reduced_bytes=BFLOAT16)
    assert sent(both) == pytest.approx(sent(Processes(4, FSDP, 4)) / 2)


def test_copies_also_add_up_the_gradients_that_each_of_their_processes_has() -> None:
    within = sent(Processes(4, FSDP, 4))
    assert sent(Processes(12, FSDP, 4)) == pytest.approx(within + 2 * 2 / 3 * 4 * NUMEL / 4)
    assert sent(Processes(3, FSDP, 1)) == pytest.approx(2 * 2 / 3 * 4 * NUMEL)  # as DDP


def test_whole_tensors_go_to_their_owners_with_gradients_and_come_back() -> None:
    more = sent(Processes(4, FSDP, 4), whole=LAYERS * LAYER) - sent(Processes(4, FSDP, 4))
    assert more == pytest.approx(3 * 3 / 4 * 4 * LAYERS * LAYER / 4)


def test_gloo_sends_twice_as_much_for_a_reduce_scatter() -> None:
    processes = Processes(4, FSDP, 4)
    assert sent(processes, backend=GLOO) - sent(processes) == pytest.approx(3 / 4 * 4 * NUMEL)


def test_uneven_rows_are_filled_up() -> None:
    uneven = Units(Unit([(10, 3)]), [Unit([(5,)])])
    assert (uneven.numel, uneven.local_numel(4), uneven.padded_numel(4)) == (35, 3 * 3 + 2, 4 * 11)
    (forward, *_) = traffic_of_step(Processes(4, FSDP, 4), uneven, 1)
    assert forward.sent() == pytest.approx(3 / 4 * 4 * 44)
