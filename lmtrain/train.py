"""One run, from a checked config to `result.json`."""

import contextlib
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from tokenizers import Tokenizer
from torch import nn

from lmtrain.checkpoint import CheckpointFolder
from lmtrain.config import ConfigError, build
from lmtrain.console import configure_logging, duration, si, significant
from lmtrain.data import tokenizer as tokenizers
from lmtrain.generate import generate
from lmtrain.logger.base import CompositeLogger, RunInfo
from lmtrain.logger.console import ConsoleLogger
from lmtrain.logger.jsonl import JsonlLogger
from lmtrain.preflight import refuse_existing_run
from lmtrain.run_directory import Result, RunDirectory, environment, write_atomically
from lmtrain.system import System
from lmtrain.trainer import DivergedError, InterruptedBySignal, Trainer, TrainState, flops_per_token, perplexity

log = logging.getLogger(__name__)

LONG_RUN_S = 24 * 3600
# Share of a matrix product's speed that a whole training step reaches; measured with llama_50m.
STEP_EFFICIENCY = {"cpu": 0.7, "cuda": 0.4}


@dataclass(frozen=True)
class Outcome:
    """How a run ended, for the process (exit code) and for a sweeper (objective)."""

    exit_code: int
    objective: float | None


def run(cfg: DictConfig, run_dir: Path, *, resume: DictConfig | None = None) -> Outcome:
    """Trains in a run directory and records how it ended.

    `resume` is for a run that goes on from its newest checkpoint: its config as composed, which the next resume will
    start from.

    Raises:
        ConfigError: a mistake that could not be seen before the parts were built (`result.json` has it, too), or the
            directory is another run's.
    """
    state = TrainState()
    with contextlib.ExitStack() as stack:
        with _mistakes_of_the_user():
            directory = stack.enter_context(RunDirectory(run_dir))
        if resume is None:
            refuse_existing_run(directory.path)
        else:
            write_atomically(directory.path / ".hydra" / "config.yaml", OmegaConf.to_yaml(resume))
        configure_logging(directory.path)
        error: BaseException | None = None
        try:
            train(cfg, directory, state)
        except BaseException as caught:
            error = caught
        status, exit_code = ending(error)
        _report(error, directory.path)
        result = Result(
            status=status,
            objective=state.best_val_loss,
            best_val_loss=state.best_val_loss,
            best_step=state.best_step,
            final_train_loss=_finite(state.train_loss),
            final_val_loss=_finite(state.val_loss),
            steps=state.step,
            tokens=state.tokens,
            seconds=round(state.seconds, 3),
            tokens_per_second=round(state.tokens / state.seconds, 1) if state.seconds else 0.0,
            config_hash=config_hash(cfg),
            error=f"{type(error).__name__}: {error}" if error else None,
        )
        directory.write_json("result.json", asdict(result))
    if isinstance(error, ConfigError):
        raise error
    return Outcome(exit_code, state.best_val_loss)


def train(cfg: DictConfig, directory: RunDirectory, state: TrainState) -> None:
    """Builds the parts in the order that data flows, and runs them; `state` is where the run is afterwards."""
    with _mistakes_of_the_user():
        system: System = build(cfg.system)  # first: it sets how memory is allocated
        system.seed(cfg.seed)
        train_loader = build(cfg.data, split="train", seed=cfg.seed)
        val_loader = build(cfg.data, split="val", seed=cfg.seed)
        # On the CPU first, so that one seed makes one model, whatever it is trained on.
        model: nn.Module = build(cfg.model).to(system.device)
        _check_block_size(model, cfg)
        optimizer = build(cfg.optimizer, list(model.named_parameters()))
        schedule = build(cfg.scheduler)
        checkpoints = CheckpointFolder(directory.path / "checkpoints")
        loaded = checkpoints.load_latest()
        if loaded is not None:
            vars(state).update(loaded.state["train"])
        tokenizer = _keep_tokenizer(cfg, directory)
        info = _record(cfg, directory, system)
        logger = CompositeLogger(
            JsonlLogger(directory.path / "metrics.jsonl", state.step),
            [
                ConsoleLogger(lambda: state.step, cfg.trainer.max_steps),
                *(build(node, info) for node in cfg.logger.values()),
            ],
        )
    try:
        with _mistakes_of_the_user():
            trainer: Trainer = build(
                cfg.trainer,
                model=model,
                optimizer=optimizer,
                schedule=schedule,
                train_loader=train_loader,
                val_loader=val_loader,
                system=system,
                logger=logger,
                checkpoints=checkpoints,
                state=state,
            )
            if loaded is not None:
                trainer.restore(loaded)
        _announce(cfg, directory, trainer)
        trainer.fit()
    except BaseException as error:
        logger.close(ending(error)[0])
        raise
    logger.close("completed")
    if tokenizer is not None and cfg.sample_tokens:
        _show_sample(model, tokenizer, system, train_loader.block_size, cfg)
    _summarise(state, cfg, directory)


def ending(error: BaseException | None) -> tuple[str, int]:
    """The status in `result.json` and the exit code of a run that ended with this error."""
    match error:
        case None:
            return "completed", 0
        case ConfigError():
            return "failed", 2
        case DivergedError():
            return "diverged", 3
        case InterruptedBySignal(number=number):
            return "interrupted", 128 + number
        case KeyboardInterrupt():
            return "interrupted", 130
    return "failed", 1


def config_hash(cfg: DictConfig) -> str:
    """Equal for runs that compute the same: the config without its name and loggers."""
    container = OmegaConf.to_container(cfg)
    assert isinstance(container, dict)
    computed = {key: value for key, value in container.items() if key not in ("name", "logger", "resume")}
    return hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _mistakes_of_the_user() -> Iterator[None]:
    """While parts are built, a ValueError is one that names a key, a value and the way out."""
    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise ConfigError(str(error.__cause__)) from error
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_block_size(model: nn.Module, cfg: DictConfig) -> None:
    longest = getattr(model, "block_size", None)
    if longest is not None and cfg.data.get("block_size", 0) > longest:
        raise ValueError(f"data.block_size={cfg.data.block_size}: longer than model.block_size={longest}")


def _keep_tokenizer(cfg: DictConfig, directory: RunDirectory) -> Tokenizer | None:
    """Copies the data's tokenizer into the run, so that sampling needs nothing else; None if there is none."""
    source = Path(cfg.data.get("path") or "", tokenizers.FILE)
    if not source.is_file():
        return None
    shutil.copyfile(source, directory.path / tokenizers.FILE)
    return tokenizers.load(str(source))


def _record(cfg: DictConfig, directory: RunDirectory, system: System) -> RunInfo:
    """Writes what the run is made of: `config.yaml` and `environment.json`."""
    run_id = directory.run_id()
    directory.write_json("environment.json", environment(run_id, system.describe()))
    write_atomically(directory.path / "config.yaml", OmegaConf.to_yaml(cfg))
    config: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    # The folder above: the runs of one name, or the jobs of one sweep.
    group = directory.path.parent.name
    return RunInfo(directory.path, run_id, name=f"{cfg.name}-{directory.path.name}", group=group, config=config)


def _announce(cfg: DictConfig, directory: RunDirectory, trainer: Trainer) -> None:
    """The run in a few lines before it starts, with a warning if it will take long."""
    loader, system, state = trainer.train_loader, trainer.system, trainer.state
    params = sum(param.numel() for param in trainer.model.parameters())
    step_tokens = loader.batch_size * loader.block_size * trainer.gradient_accumulation_steps
    steps = trainer.max_steps - state.step
    log.info("run %s", short_path(directory.path))
    log.info("model %s: %s parameters; %s", type(trainer.model).__name__, f"{params:,}", system.describe())
    log.info(
        "%s steps of %s tokens = %s, %.3g epochs of %s",
        f"{trainer.max_steps:,}",
        f"{step_tokens:,}",
        si(trainer.max_steps * step_tokens),
        trainer.max_steps * step_tokens / len(loader.tokens),
        loader.path,
    )
    if state.step:
        log.info("resumed after step %d, %d to go", state.step, max(steps, 0))
    if state.step >= trainer.max_steps:
        log.info("nothing left to do: go on with trainer.max_steps=%d, say", 2 * state.step)
    flops = flops_per_token(trainer.model, loader.block_size) * step_tokens * steps
    # A quick bound first, so that small runs measure nothing: no device is slower than this.
    if flops / 1e9 > LONG_RUN_S and (seconds := estimate_seconds(flops, system)) > LONG_RUN_S:
        log.warning(
            "this run will take about %s on %s. To make it smaller: fewer steps (trainer.max_steps), fewer tokens "
            "a step (trainer.gradient_accumulation_steps, data.batch_size, data.block_size), a smaller model "
            "(model=llama_1m)%s; experiments=quickstart takes minutes on a CPU",
            duration(seconds),
            system.device,
            " or system.dtype=float32" if system.device.type == "cpu" and system.dtype_name != "float32" else "",
        )


def estimate_seconds(flops: float, system: System) -> float:
    """How long the device takes for so many FLOPs of training, from one matrix product measured now."""
    return flops / (system.measure_flops() * STEP_EFFICIENCY[system.device.type])


def _show_sample(model: nn.Module, tokenizer: Tokenizer, system: System, block_size: int, cfg: DictConfig) -> None:
    start = tokenizer.token_to_id(tokenizers.END_OF_TEXT)
    prompt = torch.tensor([start if start is not None else 0], device=system.device)
    ids = generate(
        model,
        prompt,
        cfg.sample_tokens,
        block_size=block_size,
        vocab_size=tokenizer.get_vocab_size(),
        generator=torch.Generator().manual_seed(cfg.seed),
    )
    log.info(
        "a sample of the model's text:\n%s\n%s\n%s", "-" * 60, tokenizer.decode(ids[1:].tolist()).strip("\n"), "-" * 60
    )


def _summarise(state: TrainState, cfg: DictConfig, directory: RunDirectory) -> None:
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
    if (directory.path.parent / "multirun.yaml").exists():
        return  # a job of a sweep, which closes with its own table
    log.info(
        "next: python -m lmtrain sample %s --prompt 'import '\n"
        "      python -m lmtrain resume=%s trainer.max_steps=%d\n"
        "      python -m lmtrain -m experiments=quickstart optimizer.lr=1e-3,3e-3",
        path,
        path,
        2 * cfg.trainer.max_steps,
    )


def _report(error: BaseException | None, path: Path) -> None:
    """Tells the person how a run ended that did not complete; the traceback goes to `train.log`."""
    match error:
        case None:
            pass
        case ConfigError():
            log.debug("config error", exc_info=error)
        case DivergedError():
            log.error("diverged: %s", error)
        case InterruptedBySignal():
            log.warning("%s; to continue: python -m lmtrain resume=%s", error, short_path(path))
        case KeyboardInterrupt():
            log.warning(
                "stopped at once; to continue from the last checkpoint: python -m lmtrain resume=%s", short_path(path)
            )
        case _:
            where = short_path(path / "train.log")
            log.error("failed: %s: %s (traceback in %s)", type(error).__name__, error, where, exc_info=error)


def short_path(path: Path) -> str:
    """Relative to the current folder where it is below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
