"""Remarks about runs of many processes."""

from dataclasses import replace

from lmtrain.machine import GPUS
from lmtrain.plan.world.estimate import TYPICAL, StepTime, WorldEstimate
from lmtrain.plan.world.links import Links
from lmtrain.plan.world.plan import WorldPlan
from lmtrain.plan.world.processes import FSDP, Processes
from lmtrain.plan.world.remarks import faster_shards, fits_nowhere

H100 = next(gpu for gpu in GPUS if gpu.name == TYPICAL)


def world(processes: Processes, seconds: float = 1.0, *, fits: bool = True) -> WorldPlan:
    step = StepTime(seconds, 0.0, 0.0, 0.0, seconds, processes.size)
    estimate = WorldEstimate(H100, fits, step, seconds, None, 0.4)
    return WorldPlan(processes, Links(), 1, 1.0, {"weights": 10**11}, None, [], [estimate])


def test_a_model_that_fits_no_gpu_is_a_remark_with_the_way_out() -> None:
    assert fits_nowhere(world(Processes(8))) is None
    found = fits_nowhere(world(Processes(8), fits=False))
    assert found == (
        "parallel=ddp: a process needs 100GB, more than any of these GPUs has; with parallel=fsdp, processes share the "
        "model"
    )
    assert "parallel.shards=null" in str(fits_nowhere(world(Processes(8, FSDP, 2), fits=False)))


def test_shards_that_are_much_faster_are_a_remark() -> None:
    def planned(processes: Processes) -> WorldPlan:
        return world(processes, {1: 0.1, 2: 0.5, 4: 0.95, 8: 1.0}[processes.shards], fits=processes.shards > 1)

    found = faster_shards(planned(Processes(8, FSDP, 8)), planned)
    assert found == (
        "parallel.shards=8: with parallel.shards=2, a step on H100s takes 500 ms instead of 1,000 ms, and a process "
        "needs 100GB"
    )
    assert faster_shards(planned(Processes(8, FSDP, 2)), planned) is None
    assert faster_shards(planned(Processes(8)), planned) is None
    assert faster_shards(replace(planned(Processes(8, FSDP, 8)), estimates=[]), planned) is None
