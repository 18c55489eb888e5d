"""Logs a run for the user: a description before it starts, and a summary when it ends."""

import logging
import math
import shlex
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from lmtrain.checkpoint.snapshot import TrainState
from lmtrain.checkpoint.steps import checkpoint_steps
from lmtrain.config.overrides import quoted
from lmtrain.config.recorded.trust import names_to_trust_again
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE, StoredTokenizer
from lmtrain.errors import (
    COMPLETED,
    ConfigError,
    DivergedError,
    InterruptedBySignal,
    LostRankError,
    NonFiniteStateError,
    PrunedError,
)
from lmtrain.files.durable import write_atomically
from lmtrain.files.limited import read_json
from lmtrain.files.metrics import read_newest
from lmtrain.files.numbers import finite_or_none
from lmtrain.loop.evaluation import perplexity
from lmtrain.model.flops import flops_per_token
from lmtrain.optimizer.group_table import group_rows, group_table
from lmtrain.plan.facts import ScheduleFacts
from lmtrain.plan.hardware import estimate_seconds
from lmtrain.plan.remarks import data_repeated_far_too_often
from lmtrain.plan.schedule_remarks import certain_mistakes
from lmtrain.run.directory import RunDirectory, is_sweep
from lmtrain.run.identity import config_hash, plain_config
from lmtrain.run.provenance import RunRequest
from lmtrain.sample.generate import generate
from lmtrain.system import System
from lmtrain.terminal.as_text import visible
from lmtrain.terminal.paths import shell_folder, short_path
from lmtrain.terminal.units import counted, duration, si, significant
from lmtrain.trainer import Trainer

log = logging.getLogger(__name__)

LONG_RUN_S = 24 * 3600
SAME_RATE = 1.1  # learning rates that differ by less than this factor count as equal
SCHEDULE_END = "scheduler.max_steps:"  # prefix of the line that reports a change of this key


def announce(request: RunRequest, directory: RunDirectory, trainer: Trainer) -> None:
    """Log a short description of the run before it starts, with warnings about mistakes and a long duration."""
    cfg = request.cfg
    changes = request.resumed.changes if request.resumed else ()
    loader, system, state = trainer.train_loader, trainer.system, trainer.state
    sizes_of_parameters = {name: param.numel() for name, param in trainer.model.named_parameters()}
    params, name = sum(sizes_of_parameters.values()), trainer.parallel.class_name(trainer.model)
    sizes, steps = trainer.schedules.batch_sizes, trainer.max_steps - state.step
    tokens_left = sizes.tokens(max(steps, 0), state.tokens)
    smallest, largest = sizes.range(trainer.max_steps)
    log.info("run %s", short_path(directory.path))
    processes = f", {how}" if (how := trainer.parallel.describe()) else ""
    log.info("model %s: %s parameters; %s%s", name, f"{params:,}", system.describe(), processes)
    table = group_table(group_rows(trainer.optimizer, trainer.parts.updated.items(), sizes_of_parameters))
    log.info("parameter groups:\n%s", textwrap.indent(table, "  "))
    for other in same_runs(directory.path, config_hash(plain_config(cfg))):
        best = finite_or_none(read_json(other / "result.json").get("best_val_loss"))
        log.info("the same config as %s (completed%s)", short_path(other), f", best val {best:.4f}" if best else "")
    epochs = loader.epochs(state.samples + tokens_left // loader.block_size)
    log.info(
        "%s of %s tokens = %s, %s",
        counted(trainer.max_steps, "step"),
        f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}",
        si(state.tokens + tokens_left),
        ", ".join(f"{number:.3g} epochs of {name}" for name, number in epochs.items()),
    )
    if state.step:
        log.info("resumed after step %d, %d to go", state.step, max(steps, 0))
    if state.step >= trainer.max_steps:
        log.info("all steps are done; to train longer: %s", extension_command(cfg, directory.path, 2 * state.step))
    repeated = data_repeated_far_too_often(epochs, trainer.max_steps) if not cfg.model.get("dropout") else None
    mistakes = certain_mistakes(ScheduleFacts.of(cfg, state.step))
    for note in (
        *request.notes,
        _warn_of_rising_learning_rate(cfg, directory, trainer, changes),
        *mistakes,
        repeated,
    ):
        if note is not None:
            log.warning("%s", note)
    flops = flops_per_token(trainer.model, loader.block_size) * tokens_left
    # No device is slower than 1 GFLOP/s, so small runs skip the measurement.
    if flops / 1e9 > LONG_RUN_S and (seconds := estimate_seconds(flops, system)) > LONG_RUN_S:
        log.warning(
            "this run will take about %s on %s. To shorten it, use fewer steps (trainer.max_steps), fewer tokens per "
            "step (trainer.gradient_accumulation_steps, data.batch_size, data.block_size), or a smaller model "
            "(model=llama_1m)%s; experiments=quickstart takes minutes on a CPU",
            duration(seconds),
            system.device,
            " or system.dtype=float32" if system.device.type == "cpu" and system.dtype_name != "float32" else "",
        )


def _warn_of_rising_learning_rate(
    cfg: DictConfig, directory: RunDirectory, trainer: Trainer, changes: Sequence[str]
) -> str | None:
    """Return a warning if additional steps stretch the schedule of a run so that its learning rate rises again."""
    step = trainer.state.step
    before, now = read_newest(directory.path / "metrics.jsonl").get("lr"), trainer.schedules.learning_rate(step)
    extended = any(change.startswith(("trainer.max_steps:", SCHEDULE_END)) for change in changes)
    if not extended or before is None or now <= SAME_RATE * before or step <= (cfg.scheduler.get("warmup_steps") or 0):
        return None
    ends = [change.partition(": ")[2].partition(" → ")[0] for change in changes if change.startswith(SCHEDULE_END)]
    way_out = f"; scheduler.max_steps={ends[0]} keeps the old schedule" if ends and _ends_above_zero(cfg) else ""
    return (
        f"the learning rate rises again, from {before:.3g} at step {step:,} to {now:.3g}, because its schedule now "
        f"ends later; the loss will get worse for a while{way_out}"
    )


def _ends_above_zero(cfg: DictConfig) -> bool:
    """Return whether the schedule reaches a final learning rate above zero, at which training can continue."""
    end = cfg.scheduler.get("max_steps")
    decays = end is not None and cfg.scheduler.get("decay_steps") != 0
    return decays and bool(cfg.scheduler.get("min_lr")) and cfg.scheduler.get("warmup_steps", 0) < end


def same_runs(run: Path, wanted: str) -> list[Path]:
    """Return the completed runs in the same folder that have this config hash."""
    others = (path for path in sorted(run.parent.glob("*/result.json")) if path.parent != run)
    ended = ((path.parent, read_json(path)) for path in others)
    return [
        path
        for path, result in ended
        if (result.get("config_hash"), result.get("status")) == (wanted, COMPLETED.status)
    ]


def show_sample(
    model: nn.Module,
    tokenizer: StoredTokenizer,
    system: System,
    block_size: int,
    cfg: DictConfig,
    directory: RunDirectory,
) -> None:
    """Log a text generated by the model, and write it to `sample.txt`, which `compare` shows."""
    prompt = torch.tensor([tokenizer.end_of_text or 0], device=system.device)
    ids = generate(
        model,
        prompt,
        cfg.sample_tokens,
        block_size=block_size,
        vocab_size=tokenizer.vocab_size,
        seed=cfg.seed,
    )
    text = visible(tokenizer.decode(ids[1:].tolist()).strip("\n"))
    log.info("a sample of the model's text:\n%s\n%s\n%s", "-" * 60, text, "-" * 60)
    write_atomically(directory.path / "sample.txt", f"{text}\n")


def log_summary(state: TrainState, cfg: DictConfig, directory: RunDirectory) -> None:
    """Log the final losses, the time, and what to do next."""
    path = short_path(directory.path)
    if state.val_loss is not None:
        log.info(
            "final loss: train %.4f, val %.4f (perplexity %s; best %.4f at step %s)",
            state.train_loss or math.nan,
            state.val_loss,
            significant(perplexity(state.val_loss)),
            state.best_val_loss or math.nan,
            state.best_step,
        )
    log.info("took %s; everything is in %s", duration(state.seconds), path)
    if is_sweep(directory.path.parent):
        return  # a job of a sweep, which prints its own table at the end
    commands = [
        f"{command} --count 3" if (command := sample_command(directory.path)) else None,
        _command("evaluate", directory.path) if state.val_loss is not None else None,
        extension_command(cfg, directory.path, 2 * cfg.trainer.max_steps),
    ]
    log.info("next: %s", "\n      ".join(command for command in commands if command))


def log_ending(error: BaseException | None, path: Path) -> None:
    """Log how a run that did not complete ended; the traceback goes to `train.log`."""
    saved = checkpoint_steps(path)
    match error:
        case None:
            pass
        case ConfigError():
            log.debug("config error", exc_info=error)
        case DivergedError() | NonFiniteStateError():
            log.error("diverged: %s", error)
        case PrunedError():
            log.warning(
                "pruned: %s; saved after step %d; to continue anyway: %s",
                error,
                max(saved, default=0),
                resume_command(path),
            )
        case InterruptedBySignal():
            where = f"after step {saved[-1]}; everything is saved" if saved else "before the first step was done"
            log.warning("%s %s; to continue: %s", error, where, resume_command(path))
        case LostRankError():
            log.error("failed: %s", error)
            log.debug("traceback of the other process:\n%s", error.trace or "(not known)", exc_info=error)
            if saved:
                log.error("to continue from step %d: %s", saved[-1], resume_command(path))
        case _:
            last = traceback.extract_tb(error.__traceback__)[-1]
            log.error(
                "failed: %s: %s (%s:%s; traceback in %s)",
                type(error).__name__,
                error,
                short_path(Path(last.filename)),
                last.lineno,
                short_path(path / "train.log"),
                exc_info=error,
            )
            if saved:
                log.error("once that is fixed, continue from step %d: %s", saved[-1], resume_command(path))


def extension_command(cfg: DictConfig, run_dir: Path, max_steps: int) -> str:
    """Return the command that continues a finished run at the final learning rate of its schedule."""
    schedule = f" scheduler.max_steps={cfg.scheduler.max_steps}" if _ends_above_zero(cfg) else ""
    return f"{resume_command(run_dir)} trainer.max_steps={max_steps}{schedule}"


def resume_command(run_dir: Path) -> str:
    """Return the command that continues a run."""
    words = [f"resume={short_path(run_dir)}"]
    if names := _names_to_trust(run_dir / ".hydra" / "config.yaml", run_dir):
        words.append(f"trust=[{','.join(map(quoted, names))}]")
    return f"python -m lmtrain {shlex.join(words)}"


def sample_command(run_dir: Path) -> str | None:
    """Return the command that generates text with a run, or None for a run without a tokenizer."""
    return _command("sample", run_dir) if (run_dir / TOKENIZER_FILE).is_file() else None


def _command(verb: str, run_dir: Path) -> str:
    """Return the command that applies a verb to a run."""
    trust = [word for name in _names_to_trust(run_dir / "config.yaml", run_dir) for word in ("--trust", name)]
    return f"python -m lmtrain {shlex.join([verb, short_path(run_dir), *trust])}"


def _names_to_trust(path: Path, run_dir: Path) -> list[str]:
    """Return the names in a run's config that the user must trust; empty if the file can't be read."""
    try:
        return names_to_trust_again(path, run_dir, shell_folder())
    except ConfigError:
        return []
