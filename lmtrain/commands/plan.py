"""`python -m lmtrain plan [overrides]`: what this run would be, before it takes any time."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lmtrain.config.compose import compose_with_notes, without_hydra
from lmtrain.config.conf_source import naming_origins
from lmtrain.config.overrides import parse_overrides
from lmtrain.config.preflight import check_for_plan
from lmtrain.config.recompose import expand_fork
from lmtrain.errors import ConfigError
from lmtrain.machine import write_json_with_machine
from lmtrain.terminal.options import Number, OptionParser, output_file

DEFAULT_MFU = 0.35  # of a compiled Llama of 50M parameters or more


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain plan",
        description="What a run would be: its size, FLOPs, memory, disk, time, cost and learning rate, and likely "
        "mistakes in it. Trains nothing, prepares nothing.",
        epilog="Example: python -m lmtrain plan experiments=quickstart optimizer.lr=1e-3",
    )
    parser.add_argument("overrides", nargs="*", help="config overrides, as for training, fork=RUN_DIR too")
    parser.add_argument("--measure", action="store_true", help="time a few real steps here, and their memory")
    parser.add_argument(
        "--price",
        type=Number(at_least=0),
        help="dollars an hour, of this machine and any GPU (default: a table's for GPUs)",
    )
    parser.add_argument(
        "--mfu",
        type=Number(above=0, at_most=1),
        default=DEFAULT_MFU,
        help=f"share of a GPU's peak that is reached (default: {DEFAULT_MFU})",
    )
    parser.add_argument("--json", type=output_file, help="also write all numbers to this file")
    if several := {"-m", "--multirun"} & {*arguments}:
        raise ConfigError(f"{several.pop()}: a plan is of one run; leave it out, and give each key one value")
    options = parser.read(arguments)
    for override in parse_overrides(options.overrides):
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: several values; a plan is of one run, give one")
    composition = compose_with_notes(expand_fork(options.overrides, prepares=False))
    run_dir = Path(composition.config.hydra.run.dir)
    with naming_origins(options.overrides, composition.choices):
        cfg, missing = check_for_plan(without_hydra(composition.config))
    if options.measure and missing:
        raise ConfigError(f"--measure: {missing[0]} has no token files; python -m lmtrain prepare makes them")
    from lmtrain.plan.make import make  # torch, which help and mistakes need not wait for
    from lmtrain.plan.terminal_view import show_plan

    plan = make(cfg, run_dir, missing, measures=options.measure, mfu=options.mfu, price=options.price)
    plan = replace(plan, remarks=[*composition.notes, *plan.remarks])
    show_plan(plan)
    if options.json:
        write_json_with_machine(options.json, overrides=options.overrides, **plan.to_dict())
    return 0
