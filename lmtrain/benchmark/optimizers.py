"""`python -m lmtrain benchmark optimizers [overrides]`: times the update of every optimizer, and counts its state.

All optimizers update the same model in turn, so that only the update differs; its weights are reset before each turn.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from rich.table import Table

from lmtrain.benchmark.turns import median, ratio, rotated
from lmtrain.config.batch_size import refuse_auto
from lmtrain.config.build import raising_config_errors
from lmtrain.config.compose import compose, config_loader
from lmtrain.config.overrides import override_value
from lmtrain.config.preflight import check_for_plan
from lmtrain.config.recorded.recompose import expand_fork
from lmtrain.errors import ConfigError
from lmtrain.machine import write_json_with_machine
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser, WholeNumber, output_file
from lmtrain.terminal.units import counted

if TYPE_CHECKING:
    import torch

BASE = "adamw"
LIBRARY = "library"
WARMUP_ROUNDS = 1  # in which optimizers allocate their state


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain benchmark optimizers",
        description="Times the update of every optimizer, alone and as part of an optimizer step of a config, relative "
        f"to {BASE}, and counts the bytes of its state.",
        epilog="Example: python -m lmtrain benchmark optimizers experiments=smoke --library prodigy mars. It needs no "
        "data. A turn is the mean of --steps steps, because some optimizers do more work in every tenth step.",
    )
    parser.add_argument("overrides", nargs="*", help="config overrides, as for training, but without an optimizer")
    parser.add_argument(
        "--only", nargs="+", metavar="CHOICE", help=f"choices of optimizer= beside {BASE} (default: all)"
    )
    parser.add_argument("--library", nargs="+", default=[], metavar="NAME", help="also optimizers of pytorch-optimizer")
    parser.add_argument("--rounds", type=WholeNumber(1), default=7, help="measured rounds (default: 7)")
    parser.add_argument("--steps", type=WholeNumber(1), default=10, help="optimizer steps per turn (default: 10)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write all numbers to this file")
    options = parser.read(arguments)
    configs = _configs(options)
    with raising_config_errors():
        shared = SharedModel(configs[BASE])
    optimizers = _optimizers(shared, configs, skip=options.only is None)
    updates: list[dict[str, float]] = []
    steps: list[dict[str, float]] = []
    with console.status("measuring") as status:
        for number in range(WARMUP_ROUNDS + options.rounds):
            status.update(f"round {number + 1} of {WARMUP_ROUNDS + options.rounds}")
            turns = {name: shared.turn(optimizer, options.steps) for name, optimizer in rotated(optimizers, number)}
            updates.append({name: update for name, (update, _) in turns.items()})
            steps.append({name: step for name, (_, step) in turns.items()})
    updates, steps = updates[WARMUP_ROUNDS:], steps[WARMUP_ROUNDS:]
    state = {name: shared.state_bytes(optimizer) for name, optimizer in optimizers.items()}
    console.print(
        f"{shared.describe()}; medians of {counted(options.rounds, 'round')} of {counted(options.steps, 'step')}; "
        "ratios are taken within each round"
    )
    console.print(_table(updates, steps, {name: count / shared.parameters for name, count in state.items()}))
    if options.json:
        write_json_with_machine(
            options.json,
            overrides=options.overrides,
            steps=options.steps,
            parameters=shared.parameters,
            update_seconds=updates,
            step_seconds=steps,
            state_bytes=state,
        )
    return 0


def _configs(options: argparse.Namespace) -> dict[str, DictConfig]:
    """Return the checked config of every optimizer that is to be measured, by its name in the table."""
    for text in options.overrides:
        if text.lstrip("+~").startswith(("optimizer=", "optimizer.")):
            raise ConfigError(
                f"{text}: this benchmark compares optimizers at their own settings; see --only, --library"
            )
    with config_loader() as loader:
        choices = loader.get_group_options("optimizer") if options.only is None else options.only
    wanted = {choice: [f"optimizer={choice}"] for choice in dict.fromkeys([BASE, *choices])}
    for name in options.library:
        wanted[f"{LIBRARY}: {name}"] = [f"optimizer={LIBRARY}", f"optimizer.name={override_value(name)}"]
    overrides = expand_fork(options.overrides, prepares=False)
    found = {
        name: check_for_plan(compose([*overrides, *chosen]), "benchmark optimizers")[0]
        for name, chosen in wanted.items()
    }
    refuse_auto(found[BASE])
    return found


def _optimizers(
    shared: "SharedModel", configs: Mapping[str, DictConfig], *, skip: bool
) -> "dict[str, torch.optim.Optimizer]":
    """Build the optimizers; with `skip`, a choice that cannot be used here is left out with a message."""
    found = {}
    for name, cfg in configs.items():
        try:
            with raising_config_errors():
                found[name] = shared.optimizer(cfg)
        except ConfigError as error:
            if not skip or name == BASE or name.startswith(f"{LIBRARY}: "):
                raise
            console.print(f"{name} is left out: {error}", style="yellow")
    return found


def _table(
    updates: Sequence[Mapping[str, float]], steps: Sequence[Mapping[str, float]], state: Mapping[str, float]
) -> Table:
    """Return a row for each optimizer: milliseconds, bytes of state per parameter, and each relative to AdamW."""
    table = Table("optimizer", "update ms", f"to {BASE}", "step ms", f"to {BASE}", "state, B/param", f"to {BASE}")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, size in state.items():
        table.add_row(
            name,
            f"{1000 * median(updates, name):.2f}",
            f"{ratio(updates, name, BASE):.2f}",
            f"{1000 * median(steps, name):.1f}",
            f"{ratio(steps, name, BASE):.3f}",
            f"{size:.2f}",
            f"{size / state[BASE]:.2f}",
        )
    return table


class SharedModel:
    """A model on random tokens, whose optimizer steps are done by several optimizers in turn."""

    def __init__(self, cfg: Any) -> None:
        import torch

        from lmtrain.parts import build_model, build_system, check_attention, work_of

        vocabulary = cfg.model.get("vocab_size")
        if vocabulary is None:
            raise ConfigError("model.vocab_size=null: give a number, because this benchmark reads no data")
        self.system = build_system(cfg)
        self.model = build_model(cfg)
        self.system.choose(work_of(cfg, self.model), {})
        check_attention(self.model, self.system)
        self.model.to(self.system.device).train()
        self.forward, self.scaler = self.system.compile(self.model), self.system.scaler()
        self.params: list[torch.Tensor] = [param for param in self.model.parameters() if param.requires_grad]
        self.parameters = sum(param.numel() for param in self.params)
        self.initial = [param.detach().clone() for param in self.params]
        self.micro_batches = cfg.trainer.get("gradient_accumulation_steps", 1)
        self.grad_clip = cfg.trainer.get("grad_clip") or float("inf")
        self.shape = (cfg.data.batch_size, cfg.data.block_size)
        ids = torch.randint(vocabulary, (self.shape[0], self.shape[1] + 1), device=self.system.device)
        self.x, self.y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        self.bad = torch.zeros((), dtype=torch.bool, device=self.system.device)

    def describe(self) -> str:
        batch = f"{self.micro_batches} × {self.shape[0]} × {self.shape[1]}"
        return f"{type(self.model).__name__}, {self.parameters:,} parameters, {batch} tokens; {self.system.describe()}"

    def optimizer(self, cfg: DictConfig) -> "torch.optim.Optimizer":
        from lmtrain.parts import build_optimizer

        return build_optimizer(cfg, dict(self.model.named_parameters()))

    def turn(self, optimizer: "torch.optim.Optimizer", steps: int) -> tuple[float, float]:
        """Do steps from the initial weights; return the mean seconds of an update and of a whole step."""
        import torch

        with torch.no_grad():
            torch._foreach_copy_(self.params, self.initial)
        seconds = [self._step(optimizer) for _ in range(steps)]
        return sum(update for update, _ in seconds) / steps, sum(step for _, step in seconds) / steps

    def _step(self, optimizer: "torch.optim.Optimizer") -> tuple[float, float]:
        """Do an optimizer step as the trainer does; return the seconds of the update and of the step."""
        import torch

        from lmtrain.loop.update import update

        started = self._now()
        for _ in range(self.micro_batches):
            with self.system.autocast():
                _, loss = self.forward(self.x, self.y)
            self.scaler.scale(loss / self.micro_batches).backward()
        self.scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(self.params, self.grad_clip)
        before = self._now()
        update(optimizer, self.scaler, self.bad)
        ended = self._now()
        self.system.zero_gradients(optimizer)
        return ended - before, ended - started

    def state_bytes(self, optimizer: "torch.optim.Optimizer") -> int:
        """Return the bytes that a checkpoint has for the optimizer."""
        from lmtrain.checkpoint.optimizer_state import optimizer_state

        tensors, _ = optimizer_state(optimizer, self.model.named_parameters())
        return sum(tensor.nbytes for tensor in tensors.values())

    def _now(self) -> float:
        self.system.synchronize()
        return time.perf_counter()
