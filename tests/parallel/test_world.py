"""Tests how the environment says which process of a run this is."""

import pytest

from lmtrain.errors import ConfigError
from lmtrain.parallel.several import first_sentence
from lmtrain.parallel.world import World, this_world

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}


def test_torchrun_says_which_process_this_is() -> None:
    assert this_world(TORCHRUN) == World(rank=3, size=4, local_rank=1)


@pytest.mark.parametrize("environment", [{}, {"RANK": "3"}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_a_process_without_others_is_alone(environment: dict[str, str]) -> None:
    assert this_world(environment) == World(rank=0, size=1, local_rank=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: this environment variable must be a whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: this environment variable must be a whole number"),
        ({"RANK": "4"}, "RANK=4: must be below WORLD_SIZE=4"),
        ({"RANK": "-1"}, "RANK=-1: this environment variable must be a whole number"),
        ({"RANK": ""}, "RANK: is not set, but WORLD_SIZE is; start the processes with torchrun"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK: is not set"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR: is not set, but WORLD_SIZE=4"),
    ],
)
def test_a_wrong_environment_is_an_error(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        this_world(TORCHRUN | changes)
    assert message in str(caught.value)


def test_the_reason_of_a_lost_connection_is_short() -> None:
    error = RuntimeError(
        "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:8629: "
        "Connection reset by peer. This is typically a sign of another fault"
    )
    assert first_sentence(error) == "Read error [127.0.0.1]:8629: Connection reset by peer"
    assert (
        first_sentence(RuntimeError("NCCL error: unhandled system error\nmore")) == "NCCL error: unhandled system error"
    )
