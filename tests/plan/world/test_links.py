"""The time of messages on the links of a cluster."""

import pytest

from lmtrain.plan.world.links import Links
from lmtrain.plan.world.traffic import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, BACKWARD, Collective

LINKS = Links(node_size=8, gb_per_s=400.0, node_gb_per_s=50.0, latency_us=2.0, node_latency_us=5.0)
GB = 1e9


def collective(kind: str, ranks: int, size: float, calls: int = 1, times: float = 1.0, stride: int = 1) -> Collective:
    return Collective(kind, "weights", BACKWARD, ranks, size, calls, times, stride)


def test_in_a_node_the_bytes_take_their_time_on_its_links() -> None:
    assert LINKS.seconds(collective(ALL_GATHER, 8, 4 * GB)) == pytest.approx(7 / 8 * 4 / 400 + 7 * 2e-6)
    assert LINKS.seconds(collective(ALL_GATHER, 8, 4 * GB, calls=10, times=3)) == pytest.approx(
        3 * (7 / 8 * 4 / 400 + 10 * 7 * 2e-6)
    )


def test_between_nodes_all_ports_of_a_node_share_the_bytes() -> None:
    slow = Links(node_size=4, gb_per_s=400.0, node_gb_per_s=50.0, latency_us=2.0, node_latency_us=5.0)
    found = slow.seconds(collective(ALL_GATHER, 8, 4 * GB))
    assert found == pytest.approx(7 / 8 * 4 / (4 * 50) + 6 * 2e-6 + 5e-6)


def test_a_group_with_one_process_in_each_node_has_one_port() -> None:
    found = LINKS.seconds(collective(ALL_REDUCE, 4, GB, stride=8))
    assert found == pytest.approx(2 * 3 / 4 / 50 + 2 * 2 * 5e-6)  # a tree of four: two steps up and two down
    two_in_a_node = LINKS.seconds(collective(ALL_REDUCE, 4, GB, stride=4))
    assert two_in_a_node == pytest.approx(2 * 3 / 4 / 100 + 2 * (2e-6 + 5e-6))


def test_latency_grows_with_the_ring_and_hardly_with_a_tree() -> None:
    def latency(kind: str, ranks: int) -> float:
        return LINKS.seconds(collective(kind, ranks, 0.0))

    assert latency(ALL_GATHER, 4096) == pytest.approx(8 * latency(ALL_GATHER, 512), rel=0.02)
    assert latency(ALL_REDUCE, 4096) < 1.5 * latency(ALL_REDUCE, 512)


def test_an_all_to_all_waits_for_the_slower_of_both_kinds_of_links() -> None:
    found = LINKS.seconds(collective(ALL_TO_ALL, 16, 2 * GB))
    assert found == pytest.approx(2 * 8 / 16 / 50 + 7 * 2e-6 + 8 * 5e-6)
