"""`python -m lmtrain decide`: keeps or drops a challenger, by as many pairs of seeds as that needs."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lmtrain.comparison.run_values import VALUE_KINDS
from lmtrain.errors import ConfigError
from lmtrain.terminal.console import console
from lmtrain.terminal.options import Number, OptionParser, WholeNumber

DESCRIPTION = """\
Decides whether a challenger is better than a baseline. Runs both with seed 1, 2, 3, … and looks after each pair, until
the evidence says keep or drop, or the budget is spent. A ledger in the campaign's folder keeps the share of false ideas
among all kept ones at its level, however many ideas are tried. The same command again goes on where it was stopped."""
EPILOG = """\
Exit codes: 0 keep, 10 drop, 11 undecided (the budget is spent), 1 a run failed, 2 a mistake in the command or a config,
130 or 143 stopped by a signal. Example: python -m lmtrain decide --baseline experiments=tiny
--challenger optimizer.lr=6e-3 scheduler=constant --campaign outputs/campaign"""
DEFAULT_PAIRS = 20


def main(arguments: Sequence[str]) -> int:
    options = make_parser().read(arguments)
    if options.json:
        console.stderr = True  # so that standard output has nothing but the JSON
    if options.list:
        return _list(options)
    for name in ("baseline", "challenger"):
        if not getattr(options, name):
            raise ConfigError(f"--{name}: is missing; give its overrides, such as --{name} optimizer.lr=1e-3")
    return _decide(options)


def make_parser() -> OptionParser:
    """Return the parser for all options."""
    parser = OptionParser(prog="python -m lmtrain decide", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--baseline", nargs="+", metavar="OVERRIDE", help="overrides of the baseline")
    parser.add_argument(
        "--challenger", nargs="+", metavar="OVERRIDE", help="overrides that the challenger has in addition"
    )
    parser.add_argument("--campaign", required=True, metavar="DIR", help="folder of the ledger and of all runs")
    parser.add_argument("--list", action="store_true", help="show the ledger, and decide nothing")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and everything else to stderr")
    group = parser.add_argument_group("what is compared")
    group.add_argument("--metric", default="val/loss", help="metric to compare (default: val/loss)")
    group.add_argument(
        "--value", choices=VALUE_KINDS, default="at-step", help="value of a run (default: at-step, the last shared one)"
    )
    group.add_argument("--higher", action="store_true", help="higher values are better")
    group.add_argument(
        "--margin",
        type=Number(at_least=0),
        default=0.0,
        metavar="D",
        help="smallest gain that matters: drop what is clearly smaller (default: 0)",
    )
    group = parser.add_argument_group("the campaign")
    group.add_argument(
        "--level",
        type=Number(above=0, at_most=0.5),
        help="share of false ideas among the kept ones, set by the first decision (default: 0.05)",
    )
    group.add_argument(
        "--ideas",
        type=WholeNumber(1),
        metavar="N",
        help="ideas that the campaign expects, set by the first decision; more may follow (default: 100)",
    )
    group = parser.add_argument_group("the budget of this idea, with the runs of the baseline")
    group.add_argument(
        "--seeds",
        type=WholeNumber(2),
        default=DEFAULT_PAIRS,
        metavar="N",
        help=f"most pairs of runs (default: {DEFAULT_PAIRS})",
    )
    group.add_argument("--hours", type=Number(above=0), help="most hours of training, summed over runs")
    group.add_argument("--tokens", type=Number(above=0), help="most tokens")
    group.add_argument("--flops", type=Number(above=0), help="most FLOPs")
    group = parser.add_argument_group("how it runs")
    group.add_argument(
        "--n-jobs", type=WholeNumber(1), metavar="N", help="runs at the same time (default: as many as the GPUs allow)"
    )
    group.add_argument(
        "--gpus-per-job", type=WholeNumber(), default=1, metavar="N", help="GPUs for each run; 0 = none (default: 1)"
    )
    group.add_argument("--retry-failed", action="store_true", help="run failed jobs again")
    return parser


def _list(options: argparse.Namespace) -> int:
    from lmtrain.decide.ledger import Ledger
    from lmtrain.decide.view import ledger_as_json, show_ledger

    campaign = Path(options.campaign)
    contents = Ledger(campaign).read()
    if contents.level is None:
        raise ConfigError(f"--campaign {campaign}: has no decisions.jsonl; a first decision makes it")
    if options.json:
        _print_json(ledger_as_json(contents, campaign))
    else:
        show_ledger(contents, campaign)
    return 0


def _decide(options: argparse.Namespace) -> int:
    from lmtrain.decide.campaign import Settings, decide  # loads Hydra and SciPy, which --help need not wait for
    from lmtrain.decide.pairs import Question
    from lmtrain.decide.rule import Budget
    from lmtrain.decide.view import show_pair, show_start, show_verdict

    limits = {"seconds": options.hours and 3600 * options.hours, "tokens": options.tokens, "flops": options.flops}
    outcome = decide(
        options.baseline,
        options.challenger,
        Path(options.campaign),
        Settings(
            budget=Budget(options.seeds, **{key: value for key, value in limits.items() if value is not None}),
            question=Question(options.metric, options.value, options.higher),
            margin=options.margin,
            n_jobs=options.n_jobs,
            gpus_per_job=options.gpus_per_job,
            retry_failed=options.retry_failed,
        ),
        level=options.level,
        planned=options.ideas,
        after_pair=show_pair,
        on_start=show_start,
    )
    if outcome.failure is not None:
        print(outcome.failure, file=sys.stderr)
    elif not options.json:
        show_verdict(outcome.result)
    if options.json:
        _print_json(outcome.result)
    return outcome.exit_code


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=2, allow_nan=False))
