"""Starts a new run as one of its several processes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hydra.core.utils import env_override

from lmtrain.parallel.peers import Peers, connected
from lmtrain.parallel.world import World
from lmtrain.run.new_run import NewRun, start
from lmtrain.run.several.together import composed_together

if TYPE_CHECKING:  # loads the rest of torch
    from lmtrain.run.several.follow import BeginWithWeights


def start_together(
    world: World,
    compose: Callable[[Sequence[str]], NewRun],
    train: Callable[[NewRun, Peers], int],
    begin_with_weights: "BeginWithWeights",
) -> int:
    """Compose a run in all of its processes, and train it; return the exit code.

    `compose` takes additional overrides. `train` is called in the first process alone, and `begin_with_weights` by
    `follow` in the others.
    """
    with connected(world) as peers:
        run = composed_together(peers, compose)
        if world.is_first:
            return start(run, lambda made: train(made, peers))
        from lmtrain.run.several.follow import follow  # loads the rest of torch

        with env_override(run.composed.hydra.job.env_set):
            return follow(run.cfg, run.directory, peers, begin_with_weights)
