"""`python -m lmtrain verify-resume [overrides]`: proves that a killed run resumes to the bits of an undisturbed run."""

import argparse
import contextlib
import random
import re
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from rich.table import Table

from lmtrain.checkpoint.kept_choices import kept_choices
from lmtrain.config.compose import compose_with_notes, without_hydra
from lmtrain.config.overrides import refuse_several_runs
from lmtrain.config.preflight import preflight
from lmtrain.config.recorded.recompose import expand_fork
from lmtrain.errors import ConfigError
from lmtrain.machine import write_json_with_machine
from lmtrain.micro_batch.find import found_size
from lmtrain.run.several.local_processes import refuse_processes
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser, WholeNumber, output_file
from lmtrain.terminal.units import counted, duration
from lmtrain.verify.phases import PHASE_NAMES
from lmtrain.verify.signals import signals_as_exceptions

if TYPE_CHECKING:
    from lmtrain.verify.verification import BitsDifferError, Verification

INTERVALS = {"log_interval": 1, "checkpoint_interval": 3, "eval_interval": 4}
EVAL_BATCHES = 2
MIN_STEPS = 6  # fewer steps make too few checkpoints for one to be pruned
OTHER_DIFFERENCES = 4  # shown after the first

DESCRIPTION = """\
Proves on this machine that a killed run of this config resumes bit for bit.

The config is run once without interruption. Then it is run repeatedly, killed with SIGKILL at random moments
(starting, training, evaluating, saving, pruning, ending) and continued with resume=RUN_DIR until it completes. After
every kill and at the end, all checkpoints and all lines of metrics.jsonl must equal those of the undisturbed run.
"""
EPILOG = f"""\
Device, dtype, compilation, dropout, accumulation, data order and schedule stay as in the config. To make much happen in
few steps, these values are changed: trainer.max_steps (to --steps; the schedule keeps its length),
trainer.log_interval=1, .checkpoint_interval={INTERVALS["checkpoint_interval"]}, \
.eval_interval={INTERVALS["eval_interval"]}, at most {EVAL_BATCHES} batches per evaluation, logger=[] and
sample_tokens=0. They do not change a bit of the training, with one exception: the checkpoint to which
trainer.on_bad_step=rewind returns. The undisturbed run keeps all of its checkpoints, which needs disk space.

Exit codes: 0 = bit for bit; 1 = a difference, or a run that failed by itself; 2 = a mistake in the config.

Example: python -m lmtrain verify-resume experiments=quickstart model.dropout=0.1 --kills 30
"""


def main(arguments: Sequence[str]) -> int:
    options = parse_arguments(arguments)
    composition = compose_with_notes(expand_fork(options.overrides))
    runs = Path(composition.config.hydra.run.dir).absolute().parent
    cfg = preflight(without_hydra(composition.config))
    refuse_processes(cfg, "verify-resume")
    for note in composition.notes:
        console.print(note, style="yellow")
    with signals_as_exceptions():  # from here on, processes have to be ended and files to be removed
        return _verify_resume(options, cfg, runs)


def _verify_resume(options: argparse.Namespace, cfg: DictConfig, runs: Path) -> int:
    """Do what the checked command line says, and return the exit code; `runs` is the folder for the runs."""
    # One for all runs, because another size changes the rounding.
    found = found_size(cfg, kept_choices(None, cfg.get("fork")))
    for note in found.notes:
        console.print(note)
    sizes = [f"{key}={size}" for key, size in found.resolved.items()]
    overrides = [*_without_loggers(options.overrides), *sizes, *eventful_overrides(found.cfg, options.steps)]
    from lmtrain.verify.verification import BitsDifferError, FailedAttemptError, Verification  # with torch

    seed = secrets.randbits(32) if options.seed is None else options.seed
    error: FailedAttemptError | BitsDifferError | None = None
    with contextlib.ExitStack() as removal:
        folder = _make_folder(options.keep, runs, removal)
        console.print(
            f"{counted(options.steps, 'step')}, {counted(options.kills, 'kill')} at moments drawn with --seed {seed}; "
            f"runs in {folder}"
        )
        verification = Verification(
            folder, overrides, random.Random(seed), cfg.trainer.keep_checkpoints, keep=options.keep is not None
        )
        try:
            with contextlib.closing(verification):
                _verify(verification, options.kills)
        except (FailedAttemptError, BitsDifferError) as caught:
            error = caught
            removal.pop_all()
    _show_kills(verification)
    if options.json:
        write_json_with_machine(
            options.json, **json_report(verification, error), overrides=options.overrides, seed=seed
        )
    if error is None:
        console.print(verdict(verification), style="bold green")
        return 0
    if isinstance(error, BitsDifferError):
        _show_difference(error)
    else:
        console.print(f"{error}\n{error.output}")
    console.print(f"kept: {folder}")
    return 1


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; raise ConfigError for a mistake in them."""
    parser = OptionParser(
        prog="python -m lmtrain verify-resume",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", help="config overrides, as for training")
    parser.add_argument("--kills", type=WholeNumber(1), default=10, help="total number of kills (default: 10)")
    parser.add_argument(
        "--steps",
        type=WholeNumber(MIN_STEPS, reason=", for several checkpoints"),
        default=12,
        help="optimizer steps per run (default: 12)",
    )
    parser.add_argument(
        "--seed", type=WholeNumber(), help="seed for the moments of the kills (default: a new one each time)"
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write kills and result to this file")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="put the runs into this new folder and keep them")
    refuse_several_runs("verify-resume", arguments)
    options = parser.read(arguments)
    if options.keep and options.keep.exists() and (not options.keep.is_dir() or any(options.keep.iterdir())):
        raise ConfigError(f"--keep {options.keep}: exists already; give a new folder")
    return options


def eventful_overrides(cfg: DictConfig, steps: int) -> list[str]:
    """Return overrides that make much happen in few steps, without changing a bit of the training.

    A fork takes the steps after the one that it begins at.

    Raises:
        ConfigError: The user's own trainer lacks one of the keys to set.
    """
    begin = cfg.step if cfg.get("fork") else 0
    trainer = {"max_steps": begin + steps, **INTERVALS}
    if missing := [key for key in (*trainer, "keep_checkpoints") if key not in cfg.trainer]:
        raise ConfigError(f"trainer: has no {', '.join(missing)}; verify-resume needs to set it")
    for key in ("eval_batches", "eval_train_batches"):
        if key in cfg.trainer and (cfg.trainer[key] is None or cfg.trainer[key] > EVAL_BATCHES):
            trainer[key] = EVAL_BATCHES
    overrides = [f"trainer.{key}={value}" for key, value in trainer.items()]
    if "max_steps" in cfg.scheduler:  # by default it follows trainer.max_steps, which is changed above
        overrides.append(f"scheduler.max_steps={cfg.scheduler.max_steps}")
    return [*overrides, "logger=[]", "sample_tokens=0"]


def verdict(verification: "Verification") -> str:
    """Return a sentence that states what was proved."""
    kills, undisturbed = verification.kills, verification.undisturbed
    assert undisturbed is not None
    return (
        f"bit for bit: {counted(len(kills), 'kill')}, {counted(sum(kill.resumed for kill in kills), 'resume')}, "
        f"{counted(undisturbed.compared_checkpoints, 'checkpoint')} and "
        f"{counted(undisturbed.compared_lines, 'metric line')} compared"
    )


def json_report(verification: "Verification", error: Exception | None) -> dict[str, Any]:
    """Return the content of the `--json` file."""
    undisturbed = verification.undisturbed
    return {
        "bit_for_bit": error is None,
        "error": str(error) if error else None,
        "kills": [asdict(kill) for kill in verification.kills],
        "rounds": verification.rounds,
        "resumes": sum(kill.resumed for kill in verification.kills),
        "checkpoints": undisturbed.compared_checkpoints if undisturbed else 0,
        "metric_lines": undisturbed.compared_lines if undisturbed else 0,
    }


def _verify(verification: "Verification", kills: int) -> None:
    with console.status("running once without interruption") as status:
        verification.run_undisturbed()
        assert verification.undisturbed is not None
        steps = sorted(verification.undisturbed.steps)
        console.print(
            f"undisturbed: {duration(verification.seconds)}, checkpoints at steps {', '.join(map(str, steps))}"
        )
        while (done := len(verification.kills)) < kills:
            status.update(f"{done} of {kills} kills")
            hits = verification.run_round(kills - done, lambda kill: status.update(f"{kill} of {kills} kills"))
            where = (
                ", ".join(f"{phase} {hits[phase]}" for phase in PHASE_NAMES if hits[phase]) or "completed before a kill"
            )
            console.print(f"round {verification.rounds}: {counted(hits.total(), 'kill')} ({where}); the same bits")


def _show_kills(verification: "Verification") -> None:
    table = Table("killed while", "kills", "resumed from steps")
    for phase in PHASE_NAMES:
        kills = [kill for kill in verification.kills if kill.phase == phase]
        left = sorted({kill.checkpoint for kill in kills})
        table.add_row(phase, str(len(kills)), ", ".join(str(step) if step else "none" for step in left) or "–")
    console.print(table)


def _show_difference(error: "BitsDifferError") -> None:
    console.print(f"not bit for bit: {error}", style="bold red")
    others = error.differences[1:]
    for other in others[:OTHER_DIFFERENCES]:
        console.print(f"  also {other}")
    if len(others) > OTHER_DIFFERENCES:
        console.print(f"  and {len(others) - OTHER_DIFFERENCES} more")
    if error.unrepeatable:
        console.print(
            f"The resume may not be at fault: two undisturbed runs also differ ({error.unrepeatable}).\nThe config "
            "draws random numbers that the seed does not control, or uses operations that are not deterministic",
            markup=False,
        )
    else:
        console.print(
            "Two undisturbed runs have the same bits, so the resume is at fault: training depends on state that is not "
            "in the checkpoint, such as the model's own random generator"
        )
    console.print(f"undisturbed: {error.undisturbed}\nkilled:      {error.killed}")


def _without_loggers(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without those of loggers, since the runs have no loggers."""
    return [text for text in overrides if re.split("[=.@/]", text.lstrip("+~"))[0] != "logger"]


def _make_folder(keep: Path | None, runs: Path, removal: contextlib.ExitStack) -> Path:
    """Make a folder on the disk of the runs, which is the disk to test; register its removal unless `keep` is given."""
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        return keep.absolute()
    created = [folder for folder in (runs, *runs.parents) if not folder.exists()]
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="verify-resume-", dir=runs))

    def remove() -> None:
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # another run may be in the folder by now
            for each in created:
                each.rmdir()

    removal.callback(remove)
    return folder
