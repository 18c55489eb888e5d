"""`python -m lmtrain confirm`: runs the best settings of a sweep again with fresh seeds, and compares them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmtrain.commands.evaluate import TRUST_HELP
from lmtrain.config.build import raising_config_errors
from lmtrain.config.recorded.run_names import find_folder
from lmtrain.errors import ConfigError, SweepEndedError
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser, WholeNumber
from lmtrain.terminal.paths import short_path
from lmtrain.terminal.units import counted, loss_text

if TYPE_CHECKING:  # with scipy
    from lmtrain.sweep.confirm import Confirmation
    from lmtrain.sweep.job import JobEnd

DESCRIPTION = """\
Runs the best settings of a sweep or a search again, with seeds that it has not used, and compares them by these runs
alone. The best value of many is partly luck; the fresh runs show what is left of it. Start it in the folder in which
the sweep was started. The same command again continues what was stopped."""
EPILOG = """\
Exit codes: 0 all runs completed, 1 a run did not complete, 2 a mistake in the command or a config, 130 or 143 stopped
by a signal."""
TOP, SEEDS = 3, 5


def main(arguments: Sequence[str]) -> int:
    options = make_parser().read(arguments)
    paths = [find_folder(path) for path in options.paths]
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"{path}: no such folder; give a sweep's folder or run directories")
    from lmtrain.sweep.confirm import confirmation_jobs, plan_confirmation, record_jobs, write_plan
    from lmtrain.sweep.job_config import most_processes
    from lmtrain.sweep.pool import JobPool
    from lmtrain.sweep.progress import run_all
    from lmtrain.sweep.report import raise_if_unfinished

    with raising_config_errors():
        folder, plan, known = plan_confirmation(paths, options.into, top=options.top, seeds=options.seeds)
        jobs = confirmation_jobs(folder, plan, options.trust)
    with JobPool(
        n_jobs=options.n_jobs,
        gpus_per_job=options.gpus_per_job,
        retry_failed=options.retry_failed,
        processes=most_processes(jobs, ()),
    ) as pool:
        if not known:
            write_plan(folder, plan)
        record_jobs(folder, jobs)
        console.print(
            f"{counted(len(plan.picked), 'setting')} with {counted(len(plan.seeds), 'fresh seed')} each "
            f"({plan.seeds[0]} to {plan.seeds[-1]}), in {short_path(folder)}"
        )
        ended = run_all(pool, jobs, ())
        stopped = pool.stopped
    _show(folder, plan, ended)
    try:
        raise_if_unfinished(ended, stopped)
    except SweepEndedError as error:
        console.print("the same command continues; --retry-failed also repeats runs that failed")
        return error.exit_code
    return 0


def make_parser() -> OptionParser:
    """Return the parser for all options."""
    parser = OptionParser(prog="python -m lmtrain confirm", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="SWEEP",
        help="folder of a sweep or a search; a run directory, such as that of a baseline, is run again as well",
    )
    parser.add_argument(
        "--top", type=WholeNumber(1), default=TOP, metavar="N", help=f"settings to run again (default: {TOP})"
    )
    parser.add_argument(
        "--seeds", type=WholeNumber(2), default=SEEDS, metavar="N", help=f"seeds for each (default: {SEEDS})"
    )
    parser.add_argument("--into", type=Path, metavar="DIR", help="folder for the runs (default: SWEEP/confirm)")
    parser.add_argument(
        "--n-jobs", type=WholeNumber(1), metavar="N", help="runs at the same time (default: as many as the GPUs allow)"
    )
    parser.add_argument(
        "--gpus-per-job", type=WholeNumber(), default=1, metavar="N", help="GPUs for each run (default: 1)"
    )
    parser.add_argument("--retry-failed", action="store_true", help="repeat runs that failed or diverged")
    parser.add_argument("--trust", action="append", default=[], metavar="TARGET", help=TRUST_HELP)
    return parser


def _show(folder: Path, plan: "Confirmation", ended: Sequence["JobEnd"]) -> None:
    """Print what is left of each setting's value, then the comparison of the fresh runs."""
    from lmtrain.comparison.output.terminal_view import show_comparison
    from lmtrain.comparison.run_comparison import compare
    from lmtrain.comparison.runs import load_runs
    from lmtrain.sweep.report import count_by_status

    with_value = [one for one in ended if one.objective is not None and one.status == "completed"]
    if with_value:
        with raising_config_errors():
            show_comparison(compare(load_runs([folder])))
        console.print("\nbest loss in the sweep, and its mean on fresh seeds", style="bold")
        for rank, one in enumerate(plan.picked, 1):
            fresh = [each.objective for each in with_value if each.job.directory.name.startswith(f"top{rank},")]
            known = [value for value in fresh if value is not None]
            mean = sum(known) / len(known) if known else None
            change = "" if mean is None else f" ({mean - one.objective:+.4f}, {counted(len(known), 'seed')})"
            console.print(f"{one.title}: {loss_text(one.objective)} → {loss_text(mean)}{change}")
    console.print(f"{count_by_status(ended)}; everything is in {short_path(folder)}")
