"""`python -m lmtrain evaluate RUN_DIR…`: measures loss, perplexity and bits per byte of checkpoints on data or text."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from lmtrain.checkpoint.steps import checkpoint_steps, chosen_step
from lmtrain.commands.tokenizer_option import add_tokenizer_option, with_tokenizer
from lmtrain.config.recorded.run_names import find_folder, find_run, why_no_run
from lmtrain.errors import ConfigError
from lmtrain.files.numbers import nan_as_null
from lmtrain.machine import is_installed
from lmtrain.run.directory import is_sweep
from lmtrain.terminal.as_text import visible
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser, WholeNumber, output_file, run_name
from lmtrain.terminal.units import significant

EPILOG = """\
examples: python -m lmtrain evaluate outputs/bard --split test
          python -m lmtrain evaluate outputs/bard --checkpoint all --paired
          python -m lmtrain evaluate outputs/small outputs/large --text held_out.jsonl --stride 64 --paired

With models of different tokenizers, compare bits/byte. --paired does that by itself.
"""
SPLIT = "val"  # if none is given
TRUST_HELP = "allow a class or function named in the run's config to be imported, e.g. mymodels.Bigram; repeatable"


def finished_runs(name: Path) -> list[Path]:
    """Return the run that a name means, or the runs of a sweep; print the folders without a checkpoint, left out."""
    folder = find_folder(name)
    if not folder.exists():
        raise ConfigError(why_no_run(folder))
    return _finished_below(folder if is_sweep(folder) else find_run(folder))


def _finished_below(path: Path) -> list[Path]:
    if (path / "config.yaml").is_file() and checkpoint_steps(path):
        return [path]
    if is_sweep(path):
        jobs = [job for job in sorted(path.iterdir()) if job.is_dir() and not job.is_symlink()]  # a link may lead back
        return [run for job in jobs for run in _finished_below(job)]
    print(visible(f"{path}: left out because it is not a run with a checkpoint"), file=sys.stderr)
    return []


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain evaluate",
        description="Measures loss, perplexity and bits per byte of trained models over every token of a split or of "
        "text files.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=run_name, nargs="+", metavar="RUN_DIR", help="run or sweep directories, or names")
    parser.add_argument("--split", help="train, val or the name of any other .bin file of the data (default: val)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder of token files (default: the run's own)")
    parser.add_argument(
        "--text",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="measure on this UTF-8 text, made into tokens with each run's own tokenizer, instead of a split; a .jsonl "
        "file has a document in the key `text` of each line; repeatable",
    )
    parser.add_argument(
        "--separator", metavar="TEXT", help="text between the documents of a file (default: each file is a document)"
    )
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        help="best, latest, a step number, several with commas between them, or all; repeatable (default: best)",
    )
    parser.add_argument(
        "--stride",
        type=WholeNumber(1),
        metavar="N",
        help="begin a window every N tokens, so that each token is predicted from at least block_size − N + 1 tokens "
        "before it (default: block_size, so that windows do not overlap)",
    )
    parser.add_argument("--by-position", action="store_true", help="also print the loss by position in the context")
    parser.add_argument(
        "--paired",
        action="store_true",
        help="also print the difference of each model from the first one on the same documents, with a 95%% interval",
    )
    parser.add_argument(
        "--tasks",
        metavar="NAME,…",
        help="run tasks of the EleutherAI harness instead; needs the extra lmtrain[harness]",
    )
    parser.add_argument(
        "--task-folder", type=Path, metavar="DIR", help="folder with the task files (YAML) and their data, for --tasks"
    )
    parser.add_argument("--limit", type=WholeNumber(1), metavar="N", help="the first N questions of each task only")
    parser.add_argument(
        "--num-fewshot",
        type=WholeNumber(),
        metavar="K",
        help="examples before each question (default: as the task says)",
    )
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="also write all numbers to this file; - writes them instead"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add_tokenizer_option(parser)
    parser.add_argument("--trust", action="append", default=[], metavar="TARGET", help=TRUST_HELP)
    options = parser.read(arguments)
    check_options(options)

    runs = [run for path in options.runs for run in finished_runs(path)]
    if not runs:
        raise ConfigError(f"{', '.join(map(str, options.runs))}: found no run with a checkpoint")
    models = list(dict.fromkeys((run, step) for run in runs for step in checkpoints_of(run, options.checkpoint)))
    if options.paired and len(models) < 2:
        raise ConfigError("--paired: needs two different models; give another run or another --checkpoint")
    if options.tasks:
        return run_tasks_of(options, models)
    if options.text or options.stride or options.by_position or options.paired or options.json:
        return measure(options, models)
    return show_losses(options, models)


def check_options(options: argparse.Namespace) -> None:
    """Raise ConfigError for options that do not go together."""
    if options.split is not None and (options.text or options.tasks is not None):
        raise ConfigError(f"--split {options.split}: leave it out with --text and --tasks, which bring their own text")
    if options.separator is not None:
        from lmtrain.evaluate.texts import is_json_lines  # loads torch

        if all(map(is_json_lines, options.text)):
            raise ConfigError("--separator: is between the documents of a --text that is not .jsonl; give one")
    if options.separator == "":
        raise ConfigError("--separator '': is empty; leave it out to make each file one document")
    if options.tasks is None and (options.task_folder or options.limit or options.num_fewshot is not None):
        raise ConfigError("--task-folder, --limit and --num-fewshot: are about --tasks; give some")
    if options.tasks is not None:
        check_tasks(options)
    if options.text and options.data:
        raise ConfigError("--text and --data: give either text files or a folder of token files")
    if options.data is not None and not options.data.is_dir():
        raise ConfigError(f"--data {options.data}: no such folder")
    if options.tokenizer and not options.text and options.tasks is None:
        raise ConfigError("--tokenizer: is for --text and --tasks; a split already has tokens")
    if missing := [str(path) for path in options.text if not path.is_file()]:
        raise ConfigError(f"--text {missing[0]}: no such file")


def check_tasks(options: argparse.Namespace) -> None:
    """Raise ConfigError for mistakes in the options about tasks."""
    if options.text or options.data or options.stride or options.by_position or options.paired:
        raise ConfigError(
            "--tasks: bring their own text; leave out --text, --data, --stride, --by-position and --paired"
        )
    if not options.tasks.strip(","):
        raise ConfigError("--tasks: is empty; give names of tasks with commas between them")
    if options.task_folder is None:
        raise ConfigError("--tasks: needs --task-folder DIR, the folder with the task files")
    if not options.task_folder.is_dir():
        raise ConfigError(f"--task-folder {options.task_folder}: no such folder")
    if not is_installed("lm_eval"):
        raise ConfigError("--tasks: needs lm-eval; install it with pip install 'lmtrain[harness]'")


def run_tasks_of(options: argparse.Namespace, models: Sequence[tuple[Path, str]]) -> int:
    """Print or write what tasks of the harness say about each model."""
    from lmtrain.config.build import raising_config_errors
    from lmtrain.evaluate.tasks import load_tasks
    from lmtrain.run.reading.loaded import load_model
    from lmtrain.run.reading.tasks import tasks_of

    names = [task.strip() for task in options.tasks.split(",") if task.strip()]
    with raising_config_errors():
        tasks = load_tasks(names, options.task_folder, fewshot=options.num_fewshot)
    found = []
    for run, which in models:
        loaded = with_tokenizer(load_model(run, which, options.device, options.trust), options.tokenizer)
        found.append((str(run), loaded.step, tasks_of(loaded, tasks, options.limit)))
        del loaded  # two models may need too much memory
    content = [
        {"run": run_dir, "step": step, "tasks": [asdict(each) for each in metrics]} for run_dir, step, metrics in found
    ]
    text = json.dumps(nan_as_null({"models": content}), indent=2, allow_nan=False) + "\n"
    if options.json == Path("-"):
        print(text, end="")
        return 0
    if options.json:
        options.json.write_text(text, encoding="utf-8")
    table = Table("run", "step", "task", "metric", "value ± SE", "questions")
    for run_dir, step, metrics in found:
        for each in metrics:
            error = "" if each.standard_error is None else f" ± {each.standard_error:.4f}"
            value = f"{each.value:.4f}{error}"
            table.add_row(run_dir, str(step), each.task, each.metric, value, f"{each.samples:,}")
    console.print(table)
    return 0


def checkpoints_of(run: Path, asked: Sequence[str]) -> list[str]:
    """Return the steps of a run that `--checkpoint` asks for."""
    found: list[str] = []
    for which in (word.strip() for text in asked or ["best"] for word in text.split(",")):
        try:
            found += map(str, checkpoint_steps(run) if which == "all" else [chosen_step(run, which)])
        except ValueError as error:
            raise ConfigError(str(error)) from error
    return found


def show_losses(options: argparse.Namespace, models: Sequence[tuple[Path, str]]) -> int:
    """Print the mean loss of each model over a split."""
    # Imported only after the arguments are checked: it loads torch.
    from lmtrain.run.reading.loaded import load_model

    table = Table("run", "step", "split", "tokens", "loss", "perplexity", "bits/byte")
    for run, which in models:
        loaded = load_model(run, which, options.device, options.trust)
        if loaded.config.data.get("paths") and options.data is None:
            return measure(options, models)  # with the loss of each source
        found = loaded.evaluate(options.split or SPLIT, data=options.data)
        table.add_row(
            str(run),
            str(loaded.step),
            found.split,
            f"{found.tokens:,}",
            f"{found.loss:.4f}",
            significant(found.perplexity),
            "–" if found.bits_per_byte is None else f"{found.bits_per_byte:.4f}",
        )
        del loaded  # two models may need too much memory
    console.print(table)
    return 0


def measure(options: argparse.Namespace, models: Sequence[tuple[Path, str]]) -> int:
    """Print or write the losses of each model over documents, sources and positions, and their differences."""
    from lmtrain.run.reading.loaded import load_model
    from lmtrain.run.reading.measured import Measured, as_json, measure_model, split_streams, text_streams
    from lmtrain.run.reading.measured_tables import show_measured, show_pairs, show_positions
    from lmtrain.run.reading.paired import pair_with_first

    measured: list[Measured] = []
    split = options.split or SPLIT
    name = split if not options.text else ", ".join(map(str, options.text))
    for run, which in models:
        loaded = with_tokenizer(load_model(run, which, options.device, options.trust), options.tokenizer)
        if options.text:
            streams = text_streams(loaded, options.text, options.separator)
        else:
            streams = split_streams(loaded, split, options.data)
        measured.append(measure_model(loaded, streams, name, options.stride))
        del loaded  # two models may need too much memory
    pairs = pair_with_first(measured) if options.paired else []
    content = {"models": [as_json(each) for each in measured], "pairs": [asdict(each) for each in pairs]}
    text = json.dumps(nan_as_null(content), indent=2, allow_nan=False) + "\n"
    if options.json == Path("-"):
        print(text, end="")
        return 0
    if options.json:
        options.json.write_text(text, encoding="utf-8")
    show_measured(measured)
    if options.by_position:
        show_positions(measured)
    if pairs:
        show_pairs(measured, pairs)
    return 0
