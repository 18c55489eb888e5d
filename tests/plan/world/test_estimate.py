"""The time of a step of many processes: what is hidden, and what is waited for."""

import pytest

from lmtrain.plan.world.estimate import Computing, StepTime, step_time
from lmtrain.plan.world.links import Links
from lmtrain.plan.world.processes import FSDP, Processes
from lmtrain.plan.world.traffic import traffic_of_step
from lmtrain.plan.world.units import Unit, Units

UNITS = Units(Unit([(1000, 1000)]), [Unit([(1000, 1000)])] * 9)
ENDLESS = Links(gb_per_s=1e12, node_gb_per_s=1e12, latency_us=1e-12, node_latency_us=1e-12)


def planned(
    processes: Processes, links: Links, computing: Computing, whole: int = 0, update_share: float = 1.0
) -> StepTime:
    traffic = traffic_of_step(processes, UNITS, computing.micro_batches, whole)
    return step_time(computing, traffic, processes, links, update_share)


def test_without_a_wait_only_the_repeated_update_costs_efficiency() -> None:
    computing = Computing(1.0, 2.0, 0.5, 2)
    ddp = planned(Processes(4), ENDLESS, computing)
    assert ddp.seconds == pytest.approx(6.5)
    assert ddp.efficiency == pytest.approx((4 * 6 + 0.5) / 4 / 6.5)
    fsdp = planned(Processes(4, FSDP, 4), ENDLESS, computing, update_share=1 / 4)
    assert fsdp.efficiency == pytest.approx(1.0)


def test_ddp_hides_all_but_the_last_bucket() -> None:
    processes, links = Processes(8, bucket_bytes=4 * 10**6), Links(latency_us=1e-9)  # ten buckets
    alone = planned(processes, links, Computing(0.0, 0.0, 0.0, 1))
    assert alone.waiting == pytest.approx(alone.sending)
    assert alone.hidden == pytest.approx(0.0)
    long = planned(processes, links, Computing(1.0, 2.0, 0.0, 1))
    assert long.waiting == pytest.approx(long.sending / 10)
    assert long.hidden == pytest.approx(0.9)


@pytest.mark.parametrize("shards", [2, 8])
@pytest.mark.parametrize("reduces_each", [False, True])
@pytest.mark.parametrize("reshard", [False, True])
def test_without_computing_every_message_is_waited_for(shards: int, reduces_each: bool, reshard: bool) -> None:
    processes = Processes(8, FSDP, shards, reshard=reshard, reduces_each=reduces_each)
    found = planned(processes, Links(), Computing(0.0, 0.0, 0.0, 4), whole=10**6)
    assert found.sending > 0
    assert found.waiting == pytest.approx(found.sending)


def test_long_computing_hides_all_but_the_first_and_last_messages() -> None:
    processes = Processes(8, FSDP, 8)
    found = planned(processes, Links(latency_us=1e-9), Computing(10.0, 20.0, 0.0, 3))
    gather, gather_layers, gradients = (
        Links(latency_us=1e-9).seconds(each) / each.times for each in traffic_of_step(processes, UNITS, 3)
    )
    bare = 3 * 2 / 10 * gather + 3 / 10 * gather_layers + gradients / 10
    assert found.waiting == pytest.approx(bare)
    assert found.hidden > 0.7


def test_the_update_of_whole_tensors_hides_nothing() -> None:
    computing, processes = Computing(10.0, 20.0, 0.0, 3), Processes(8, FSDP, 8)
    with_them, without = (planned(processes, Links(), computing, whole) for whole in (10**7, 0))
    assert with_them.waiting - without.waiting == pytest.approx(with_them.sending - without.sending)
