"""`python -m lmtrain benchmark scaling [overrides]`: measures how much faster several processes train than one.

For each number of processes, a run waits beside the others, and they take turns. Every run has the same global batch.
"""

import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from lmtrain.benchmark.scaling.report import SEND, TRAIN, WITHOUT_GRADIENTS, Scaling, show
from lmtrain.benchmark.turns import take_turns
from lmtrain.config.batch_size import for_processes
from lmtrain.config.compose import compose
from lmtrain.config.preflight import check_for_plan
from lmtrain.config.recorded.recompose import expand_fork
from lmtrain.errors import ConfigError
from lmtrain.machine import available_cores, write_json_with_machine
from lmtrain.plan.world.processes import Processes
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser, WholeNumber, output_file
from lmtrain.terminal.units import si

TIMEOUT_S = 3600.0  # for which a run may wait for its turn
WARMUP_ROUNDS = 1


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain benchmark scaling",
        description="Times the training steps of several numbers of processes on this machine, with the same global "
        "batch. Also says how much of the messages is hidden behind the backward, and compares the bytes that each "
        "process sends with those that plan calculates. If the data is not prepared, random tokens take its place.",
        epilog="Example: python -m lmtrain benchmark scaling experiments=quickstart parallel=ddp --processes 1,2",
    )
    parser.add_argument("overrides", nargs="*", help="config overrides, as for training")
    parser.add_argument("--processes", default="1,2", metavar="N,N", help="numbers of processes (default: 1,2)")
    parser.add_argument("--rounds", type=WholeNumber(1), default=7, help="measured rounds (default: 7)")
    parser.add_argument("--steps", type=WholeNumber(1), default=3, help="optimizer steps per round (default: 3)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write all numbers to this file")
    options = parser.read(arguments)
    sizes = _sizes(options.processes)
    cfg, missing = check_for_plan(compose(expand_fork(options.overrides, prepares=False)), "benchmark")
    for size in sizes:
        for_processes(cfg, size)
    if "parallel" not in cfg:
        raise ConfigError("parallel: this config has no such group; give the overrides of a new run")
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, available_cores() // max(sizes)))

    import torch

    from lmtrain.benchmark.scaling.process import NOTHING
    from lmtrain.benchmark.scaling.team import Team
    from lmtrain.benchmark.step.training import with_random_tokens

    gpus = torch.cuda.device_count() if cfg.system.get("device") in ("auto", "cuda") else 0
    if 0 < gpus < sizes[-1]:
        raise ConfigError(
            f"--processes {options.processes}: each process needs a GPU, and this machine has {gpus}; give fewer, or "
            "system.device=cpu"
        )
    with tempfile.TemporaryDirectory(prefix="lmtrain-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        if missing:
            cfg = with_random_tokens(cfg, folder / "tokens")
        teams: dict[int, Team] = {}
        for size in sizes:
            own = cfg.copy()
            OmegaConf.update(own, "parallel.timeout_s", TIMEOUT_S, force_add=True)
            OmegaConf.update(own, "parallel.world_size", size)
            Processes.of(own)  # raises for shards that don't divide
            teams[size] = stack.enter_context(Team(own, folder / str(size), size, threads))
        for team in teams.values():
            team.meet()
        contenders = {
            f"{do}, {size}": (team, do)
            for size, team in teams.items()
            for do in ((TRAIN,) if size == 1 else (TRAIN, WITHOUT_GRADIENTS, SEND))
        }
        beside = {size: team.measure(NOTHING, 1) for size, team in teams.items()}
        sent: dict[int, list[float]] = {size: [] for size in sizes}

        steps: int = options.steps

        def measure(contender: tuple[Team, str], number: int) -> float:
            team, do = contender
            found = team.measure(do, steps)
            if do == TRAIN and found.sent is not None and number >= WARMUP_ROUNDS:
                sent[team.size] += [(each - (beside[team.size].sent or [0])[0]) / steps for each in found.sent]
            return found.seconds / steps

        rounds = take_turns(contenders, options.rounds, measure, warmup=WARMUP_ROUNDS)
        theory = {size: team.theory for size, team in teams.items()}
        held = {size: team.held for size, team in teams.items()}
    step_tokens = cfg.data.batch_size * cfg.data.block_size * cfg.trainer.gradient_accumulation_steps
    result = Scaling(rounds, sizes, sent, theory, held, step_tokens)
    console.print(
        f"{cfg.model._target_.rpartition('.')[2]}, {si(step_tokens)} tokens in a step; "
        f"{cfg.parallel._target_.rpartition('.')[2]}, on {available_cores()} cores"
    )
    show(result, threads)
    if options.json:
        numbers: Mapping[str, object] = result.to_dict()
        write_json_with_machine(
            options.json, overrides=options.overrides, steps=options.steps, threads=int(threads), **numbers
        )
    return 0


def _sizes(text: str) -> list[int]:
    """Return the numbers of processes in ascending order."""
    words = text.split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise ConfigError(f"--processes {text}: must be whole numbers with commas between them, such as 1,2,4")
    return sorted({int(word) for word in words})
