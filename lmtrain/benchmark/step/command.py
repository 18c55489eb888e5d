"""`python -m lmtrain benchmark [overrides]`: measures a run's training step against what the machine can do at best.

The machine's limit is the floor of a step: its matrix products and its attention alone. The real step and its floor
take turns in one process, and only their ratio within a round counts, so noise on the machine affects both alike.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lmtrain.config.compose import compose
from lmtrain.config.preflight import check_for_plan
from lmtrain.config.recorded.recompose import expand_fork
from lmtrain.errors import ConfigError
from lmtrain.terminal.console import console
from lmtrain.terminal.options import Number, OptionParser, WholeNumber, output_file

SECONDS = 60.0


def main(arguments: Sequence[str]) -> int:
    started = time.perf_counter()
    parser = OptionParser(
        prog="python -m lmtrain benchmark",
        description="Measures the training step of a config, by phases, against the matrix products and the attention "
        "of the same shapes alone. If the data is not prepared, random tokens take its place.",
        epilog="Example: python -m lmtrain benchmark model=llama_10m --json step.json. Open the trace of "
        "--profile at https://ui.perfetto.dev.",
    )
    parser.add_argument("overrides", nargs="*", help="config overrides, as for training")
    parser.add_argument(
        "--seconds",
        type=Number(above=0.0),
        default=SECONDS,
        help=f"time for the measured rounds; starting and compiling come on top (default: {SECONDS:g})",
    )
    parser.add_argument(
        "--micro-batches",
        type=WholeNumber(1),
        help="micro-batches per measured step (default: as in the config, or fewer if that would take too long)",
    )
    parser.add_argument(
        "--profile", type=output_file, metavar="FILE", help="record some steps as a trace for Perfetto: trace.json.gz"
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write all numbers to this file")
    options = parser.read(arguments)
    if options.profile and not options.profile.name.endswith((".json", ".json.gz")):
        raise ConfigError(f"--profile {options.profile}: must end in .json or .json.gz, for Perfetto")
    cfg, missing = check_for_plan(compose(expand_fork(options.overrides, prepares=False)), "benchmark")

    from lmtrain.benchmark.step.measured_run import measure_run
    from lmtrain.benchmark.step.report import show, write_json

    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=Path.cwd()) as folder:
        findings = measure_run(
            cfg,
            Path(folder),
            has_data=not missing,
            started=started,
            seconds=options.seconds,
            micro_batches=options.micro_batches,
            profile_file=options.profile,
        )
    show(findings)
    if options.profile:
        console.print(f"trace: {options.profile}; open it at https://ui.perfetto.dev")
    if options.json:
        write_json(options.json, findings, cfg, options.overrides)
    return 0
