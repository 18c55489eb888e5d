"""One of the processes of a measured run: it trains, or only sends, when the benchmark asks the first of them.

It is the script of a process that torchrun starts. Its argument is the folder of its run.
"""

import contextlib
import dataclasses
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lmtrain.benchmark.scaling.messages import Messages
from lmtrain.benchmark.scaling.report import SEND, TRAIN, WITHOUT_GRADIENTS
from lmtrain.benchmark.scaling.sockets import sent_bytes
from lmtrain.benchmark.step.training import TrainingInTurns
from lmtrain.config.batch_size import for_processes
from lmtrain.config.build import raising_config_errors
from lmtrain.errors import ConfigError, LostRankError
from lmtrain.loop.training_parts import Parts
from lmtrain.parallel.base import Parallel
from lmtrain.parallel.peers import Peers, connected
from lmtrain.parallel.world import World, this_world
from lmtrain.parts import build_parts
from lmtrain.plan.world.make import sizes_of_whole
from lmtrain.plan.world.processes import FSDP, Processes
from lmtrain.plan.world.traffic import BACKWARD, GLOO, GRADIENTS, NCCL, Collective, sent_in_step, traffic_of_step
from lmtrain.plan.world.units import units_of

CONFIG, ADDRESS = "config.yaml", "address"  # files in the folder of a run
NOTHING = "nothing"  # a round without steps or messages
WARMUP_STEPS = 3  # DDP divides the gradients anew after the first


class WithoutGradients:
    """The processes of a run, but no gradients are sent; each process keeps its own.

    With FSDP, these are not those of its rows, so it updates by zeros.
    """

    def __init__(self, parallel: Parallel, model: nn.Module) -> None:
        self._parallel, self._model = parallel, model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parallel, name)

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        return self._parallel.accumulating(last=False)

    def gradients_ready(self) -> None:
        self._parallel.free_weights()  # as after the last backward of a step
        for param in self._model.parameters():
            if param.requires_grad and param.grad is None:
                param.grad = torch.zeros_like(param)
        self._parallel.gradients_ready()


class Measured:
    """The training of a process, which measures rounds of steps on request.

    Args:
        cfg: The checked config.
        parts: The parts of the run.
        folder: An empty folder of this process.
        receive: Returns the next request; called in the first process.
        answer: Sends an answer; called in the first process.
    """

    def __init__(
        self,
        cfg: DictConfig,
        parts: Parts,
        folder: Path,
        receive: Callable[[], Any],
        answer: Callable[[Any], None],
    ) -> None:
        self.cfg, self.parts, self.receive, self.answer = cfg, parts, receive, answer
        self.training = TrainingInTurns(cfg, parts, folder)
        self.traffic = traffic_of(cfg, parts)
        self.is_counted = parts.system.device.type == "cpu"

    def run(self) -> None:
        """Answer requests until there is none."""
        self.training.run(self._turns())

    def _turns(self) -> Iterator[None]:
        for _ in range(WARMUP_STEPS):
            yield
        parallel, world = self.parts.parallel, self.parts.parallel.world
        gradients = [each for each in self.traffic if each.purpose.startswith(GRADIENTS) and each.during == BACKWARD]
        messages = Messages(gradients, world, self.parts.system.device) if world.size > 1 else None
        backend = GLOO if self.is_counted else NCCL
        held = parallel.every(held_bytes(self.parts))
        if world.is_first:
            self.answer({"theory": sent_in_step(self.traffic, backend), "held": held})
        trainer = self.training.trainer
        quiet = dataclasses.replace(self.parts, parallel=cast(Parallel, WithoutGradients(parallel, self.parts.model)))
        while (request := parallel.from_first(self.receive)) is not None:
            do, steps = request["do"], request["steps"]
            trainer.parts = quiet if do == WITHOUT_GRADIENTS else self.parts
            self.parts.system.synchronize()
            parallel.wait_for_all()
            sent, started = sent_bytes(), time.perf_counter()
            for _ in range(steps):
                if do in (TRAIN, WITHOUT_GRADIENTS):
                    yield
                elif do == SEND and messages is not None:
                    messages.send()
            self.parts.system.synchronize()
            seconds = time.perf_counter() - started
            parallel.wait_for_all()  # what this process has sent has arrived
            counted = (sent_bytes() or 0) - (sent or 0) if self.is_counted and sent is not None else None
            everyone = parallel.every({"seconds": seconds, "bytes": counted})
            if world.is_first:
                self.answer(everyone)


def held_bytes(parts: Parts) -> dict[str, int]:
    """Return the bytes of the weights that this process has between two steps, and of its optimizer's state."""
    own = parts.parallel.own(parts.model).values()
    state = [value for values in parts.optimizer.state.values() for value in values.values()]
    tensors = [each for each in state if isinstance(each, torch.Tensor) and each.device.type != "meta"]
    return {"weights": sum(each.nbytes for each in own), "optimizer": sum(each.nbytes for each in tensors)}


def traffic_of(cfg: DictConfig, parts: Parts) -> list[Collective]:
    """Return what each process sends in a step, in theory."""
    processes = Processes.of(cfg)
    if processes is None:
        return []
    micro_batches = cfg.trainer.gradient_accumulation_steps / processes.size
    whole = sum(sizes_of_whole(cfg, parts.model).values()) if processes.kind == FSDP else 0
    return traffic_of_step(processes, units_of(parts.model), micro_batches, whole)


def main(folder: Path) -> None:
    """Run a process; the first one connects with the benchmark."""
    world = this_world()
    if not world.is_first:
        with contextlib.suppress(ConfigError, LostRankError):  # the first process reports them
            _run(folder, world, lambda: None, lambda _: None)
        return
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect((folder / ADDRESS).read_text(encoding="utf-8"))
        with connection.makefile("rw", encoding="utf-8") as stream:

            def answer(content: Any) -> None:
                stream.write(json.dumps(content) + "\n")
                stream.flush()

            def receive() -> Any:
                line = stream.readline()
                return json.loads(line) if line else None

            try:
                _run(folder, world, receive, answer)
            except (ConfigError, LostRankError) as error:
                answer({"mistake": str(error)})


def _run(folder: Path, world: World, receive: Callable[[], Any], answer: Callable[[Any], None]) -> None:
    cfg = OmegaConf.load(folder / CONFIG)
    assert isinstance(cfg, DictConfig)
    if world.size == 1:
        _measure(cfg, folder, None, receive, answer)
        return
    with connected(world) as peers:
        _measure(cfg, folder, peers, receive, answer)


def _measure(
    cfg: DictConfig, folder: Path, peers: Peers | None, receive: Callable[[], Any], answer: Callable[[Any], None]
) -> None:
    world = peers.world if peers else World()
    own = folder / f"rank-{world.rank}"
    own.mkdir()
    with raising_config_errors():
        cfg = for_processes(cfg, world.size)
        parts = build_parts(cfg, peers=peers)
    Measured(cfg, parts, own, receive, answer).run()
    parts.parallel.close()
    if peers is not None:
        peers.leave()


if __name__ == "__main__":
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    main(Path(sys.argv[1]))
