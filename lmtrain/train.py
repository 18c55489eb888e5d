"""One run, from a checked config to `result.json`."""

import contextlib
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from lmtrain.checkpoint import fork
from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.checkpoint.saver import Saver
from lmtrain.checkpoint.snapshot import TrainState, train_state
from lmtrain.config.build import build, raising_config_errors
from lmtrain.config.token_files import token_folders
from lmtrain.data import tokenizer as tokenizers
from lmtrain.data.stored_tokenizer import StoredTokenizer
from lmtrain.errors import COMPLETED, ConfigError, DataError, ending_of
from lmtrain.files.limited import read_json
from lmtrain.logger.base import CompositeLogger
from lmtrain.logger.console import ConsoleLogger
from lmtrain.logger.jsonl import JsonlLogger
from lmtrain.logger.wandb import agent_run_id
from lmtrain.loop.bad_batches import BadBatches
from lmtrain.loop.stop_request import PRUNE_FILE, StopRequest
from lmtrain.parts import check_block_size, check_samples
from lmtrain.run import report
from lmtrain.run.directory import RunDirectory, refuse_existing_run
from lmtrain.run.environment import environment, lasting
from lmtrain.run.identity import config_hash
from lmtrain.run.info import plain, run_info
from lmtrain.run.provenance import Resumed, record, size
from lmtrain.run.result import Result
from lmtrain.system import System
from lmtrain.terminal.console import configure_logging
from lmtrain.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run ended, for the process (exit code) and for a sweeper (objective)."""

    exit_code: int
    objective: float | None


def run(
    cfg: DictConfig,
    run_dir: Path,
    hydra_files: Mapping[str, str],
    *,
    resumed: Resumed | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> Outcome:
    """Trains in a run directory and records how it ended; `resumed` is for a run that goes on.

    `hydra_files` are the texts for `.hydra/`, by file name: the config as composed, which a resume starts from.
    `lineage` is what `environment.json` says of the run that this one repeats.

    Raises:
        ConfigError: a mistake that could not be seen before the parts were built (`result.json` has it, too), or the
            directory is another run's.
    """
    state = TrainState()
    with contextlib.ExitStack() as stack:
        with raising_config_errors():
            directory = stack.enter_context(RunDirectory(run_dir))
        if resumed is None:
            refuse_existing_run(directory.path)
            directory.write_config(OmegaConf.to_yaml(cfg), hydra_files)
        else:
            _refuse_fewer_steps(cfg, directory.path)
        configure_logging(directory.path)
        error: BaseException | None = None
        stop = stack.enter_context(StopRequest(directory.path / PRUNE_FILE))
        try:
            train(cfg, directory, hydra_files, state, stop, resumed, lineage or {})
        except BaseException as caught:
            error = caught
        stop.defers = True  # the rest takes no time, and says how the run ended
        ending = ending_of(error)
        report.tell_ending(error, directory.path)
        result = Result(
            status=ending.status,
            objective=state.best_val_loss,
            best_val_loss=state.best_val_loss,
            best_step=state.best_step,
            final_train_loss=_finite(state.train_loss),
            final_val_loss=_finite(state.val_loss),
            steps=state.step,
            tokens=state.tokens,
            bad_steps=state.bad_steps,
            seconds=round(state.seconds, 3),
            tokens_per_second=round(state.tokens / state.seconds, 1) if state.seconds else 0.0,
            config_hash=config_hash(plain(cfg)),
            error=f"{type(error).__name__}: {error}" if error else None,
        )
        try:
            # A resume that could not begin, or had nothing left to do, changes nothing of how a run ended; but one that
            # was killed after its last step has not ended yet.
            ended = read_json(directory.path / "result.json").get("status") == COMPLETED.status
            if resumed is None or resumed.began or (error is None and not ended):
                directory.write_json("result.json", asdict(result))
        except OSError as refused:
            log.error("result.json could not be written: %s", refused)
    if isinstance(error, ConfigError):
        raise error
    return Outcome(ending.exit_code, state.best_val_loss)


def train(
    cfg: DictConfig,
    directory: RunDirectory,
    hydra_files: Mapping[str, str],
    state: TrainState,
    stop: StopRequest,
    resumed: Resumed | None,
    lineage: Mapping[str, Any],
) -> None:
    """Builds the parts in the order that data flows, and runs them; `state` is where the run is afterwards."""
    with raising_config_errors():
        system: System = build(cfg.system)  # first: it sets how memory is allocated
        system.seed(cfg.seed)
        train_loader = build(cfg.data, split="train", seed=cfg.seed)
        val_loader = build(cfg.data, split="val", seed=cfg.seed)
        # On the CPU first, so that one seed makes one model, whatever it is trained on.
        model: nn.Module = build(cfg.model).to(system.device)
        check_block_size(model, cfg)
        check_samples(train_loader, cfg)
        optimizer = build(cfg.optimizer, list(model.named_parameters()))
        schedule = build(cfg.scheduler)
        run_id = directory.run_id(given=agent_run_id())
        checkpoints = CheckpointFolder(directory.path / "checkpoints", run_id)
        loaded = checkpoints.load_latest()
        if loaded is not None:
            vars(state).update(vars(train_state(loaded)))
        elif broken := checkpoints.broken():
            raise ValueError(f"{checkpoints.path}: no intact checkpoint ({', '.join(broken)}); start a new run")
        origin = fork.load_origin(Path(cfg.fork), cfg.step) if loaded is None and cfg.get("fork") else None
        if origin is not None:
            vars(state).update(vars(fork.first_state(origin)))
            lineage = {**lineage, "forked_from": origin.record}
        tokenizer = _keep_tokenizer(cfg, directory)
        decode = tokenizer.decode if tokenizer else None
        now = {**environment(run_id, system.describe()), **lineage}
        info = run_info(cfg, directory, run_id)
        metrics = JsonlLogger(directory.path / "metrics.jsonl")
        logger = CompositeLogger(
            metrics,
            [
                ConsoleLogger(lambda: state.step, cfg.trainer.max_steps),
                *(build(node, info) for node in cfg.logger.values()),
            ],
        )
    try:
        with raising_config_errors():
            trainer: Trainer = build(
                cfg.trainer,
                model=model,
                optimizer=optimizer,
                schedule=schedule,
                train_loader=train_loader,
                val_loader=val_loader,
                system=system,
                logger=logger,
                # A checkpoint counts on the metrics up to its step.
                saver=Saver(checkpoints, before_commit=metrics.sync),
                bad_batches=BadBatches(directory.path / "bad-batches", train_loader, decode),
                stop=stop,
                state=state,
                record={"run_id": run_id, "config": info.config, "environment": lasting(now)},
            )
            if loaded is not None:
                trainer.restore(loaded)
            elif origin is not None:
                fork.begin(trainer.snapshot, origin, state, train_loader.batch_size)
                _refuse_no_steps(trainer, origin)
            logger.rewind(state.step if state.pending is None else state.step - 1)
            if resumed is None or state.step < trainer.max_steps or state.pending is not None:
                now |= {"model": size(model, train_loader), "data": trainer.snapshot.data["fingerprints"]}
                then = loaded.state.get("environment") if loaded else None
                record(cfg, directory, hydra_files, now, resumed, then)
        loaded = origin = None  # as much memory again
        report.announce(cfg, directory, trainer)
        try:
            trainer.fit()
        except DataError as error:
            again = report.resume_command(directory.path)
            raise ConfigError(f"{error}; to continue when that is mended: {again}") from error
    except BaseException as error:
        stop.defers = True  # how the run ended is settled
        logger.close(ending_of(error).status)
        raise
    stop.defers = True
    logger.close(COMPLETED.status)
    if tokenizer is not None and cfg.sample_tokens:
        report.show_sample(model, tokenizer, system, train_loader.block_size, cfg, directory)
    report.summarise(state, cfg, directory)


def _refuse_fewer_steps(cfg: DictConfig, run_dir: Path) -> None:
    done = max(CheckpointFolder(run_dir / "checkpoints").steps(), default=0)
    if cfg.trainer.get("max_steps", done) < done:
        raise ConfigError(f"trainer.max_steps={cfg.trainer.max_steps}: the run has done {done} steps already")


def _refuse_no_steps(trainer: Trainer, origin: fork.Origin) -> None:
    if trainer.max_steps <= origin.state.step:
        raise ValueError(
            f"trainer.max_steps={trainer.max_steps}: the fork starts after step {origin.state.step}; give more, or an "
            "earlier step=N"
        )


def _keep_tokenizer(cfg: DictConfig, directory: RunDirectory) -> StoredTokenizer | None:
    """The data's tokenizer, copied into the run, so that sampling needs nothing else; None if there is none."""
    source = next(iter(token_folders(cfg.data).values()), None)
    return tokenizers.load(directory.path) if source and tokenizers.copy(source, directory.path) else None


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
