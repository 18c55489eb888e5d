"""One run, from a checked config to `result.json`."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.checkpoint.saver import Saver
from lmtrain.checkpoint.snapshot import TrainState
from lmtrain.checkpoint.steps import checkpoint_steps
from lmtrain.config.build import build, raising_config_errors
from lmtrain.config.token_files import token_folders
from lmtrain.data.stored_tokenizer import (
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    StoredTokenizer,
    copy_tokenizer,
    load_tokenizer,
)
from lmtrain.errors import COMPLETED, ConfigError, DataError, InterruptedBySignal, ending_of
from lmtrain.files.limited import read_json
from lmtrain.files.links import refuse_links
from lmtrain.logger.base import CompositeLogger
from lmtrain.logger.console import ConsoleLogger
from lmtrain.logger.jsonl import JsonlLogger
from lmtrain.logger.wandb import agent_run_id
from lmtrain.loop.bad_batches import BadBatches
from lmtrain.loop.stop_request import PRUNE_FILE, StopRequest
from lmtrain.loop.training_parts import Parts
from lmtrain.parts import build_parts, check_model_size
from lmtrain.run import report
from lmtrain.run.directory import RunDirectory, refuse_existing_run
from lmtrain.run.environment import describe_environment, hardware_and_software
from lmtrain.run.identity import plain_config
from lmtrain.run.logger_info import run_info
from lmtrain.run.provenance import Resume, RunRequest, model_summary, record_start
from lmtrain.run.result import write_result
from lmtrain.run.start import load_start, start_checkpoints
from lmtrain.terminal.console import configure_logging
from lmtrain.trainer import Recorder, Trainer

log = logging.getLogger(__name__)

Afterwards = Callable[[str], None]  # takes the status in `result.json`


@dataclass(frozen=True)
class Outcome:
    """How a run ended, for the process (exit code), for a sweeper (objective), and for a caller in Python (error)."""

    exit_code: int
    objective: float | None
    error: BaseException | None = None


def run(
    cfg: DictConfig,
    run_dir: Path,
    hydra_files: Mapping[str, str],
    *,
    resumed: Resume | None = None,
    lineage: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    owns_process: bool = True,
) -> Outcome:
    """Train in a run directory and record how the run ended; `resumed` is for a run that goes on.

    `hydra_files` are the texts for `.hydra/`, by file name: the config as composed, which a resume starts from.
    `lineage` is what `environment.json` says of the run that this one repeats; `notes` are logged before it starts.
    `owns_process` is false where the caller goes on after the run, in a notebook for example (see `StopRequest`).

    Raises:
        ConfigError: a mistake that could not be seen before the parts were built (`result.json` has it, too), or the
            directory is another run's.
    """
    request = RunRequest(cfg, hydra_files, resumed, lineage or {}, notes)
    state = TrainState()
    with contextlib.ExitStack() as stack:
        with raising_config_errors():
            directory = stack.enter_context(RunDirectory(run_dir))
        if resumed is None:
            refuse_existing_run(directory.path)
            directory.write_config(OmegaConf.to_yaml(cfg), hydra_files)
        else:
            _refuse_fewer_steps(cfg, directory.path)
        with raising_config_errors():  # a folder in a file's place
            configure_logging(directory.path)
            stop = stack.enter_context(StopRequest(directory.path / PRUNE_FILE, owns_process=owns_process))
        error: BaseException | None = None
        afterwards: list[Afterwards] = []
        try:
            train(request, directory, state, stop, afterwards)
        except BaseException as caught:
            error = caught
        stop.defers = True  # the result takes no time, and says how the run ended
        ending = ending_of(error)
        # A resume that could not begin, or had nothing left to do, changes nothing of how a run ended; but one that was
        # killed after its last step has not ended yet.
        ended = read_json(directory.path / "result.json").get("status") == COMPLETED.status
        if resumed is None or resumed.began or (error is None and not ended):
            write_result(cfg, directory, state, ending.status, error)
        for task in afterwards:
            _do_afterwards(task, ending.status, stop)
        if error is None:
            report.log_summary(state, cfg, directory)
        else:
            report.log_ending(error, directory.path)
    if isinstance(error, ConfigError):
        raise error
    return Outcome(ending.exit_code, state.best_val_loss, error)


def _do_afterwards(task: Afterwards, status: str, stop: StopRequest) -> None:
    """Do what is left when the result is written: a signal cuts it short, and no error changes how the run ended."""
    try:
        try:
            stop.defers = False
            task(status)
        finally:
            stop.defers = True  # also for what is logged here
    except InterruptedBySignal as signal:
        log.warning("%s, when the run had ended: %s", signal, status)
    except Exception as error:
        log.warning("%s: %s, when the run had ended: %s", type(error).__name__, error, status)
        log.debug("its traceback", exc_info=True)


def train(
    request: RunRequest, directory: RunDirectory, state: TrainState, stop: StopRequest, afterwards: list[Afterwards]
) -> None:
    """Build the parts in the order that data flows, and run them; `state` is where the run is when this returns.

    What is to be done when the result is written, and may take long or fail, is added to `afterwards`.
    """
    cfg, resumed = request.cfg, request.resumed
    with raising_config_errors():
        check_model_size(cfg, start_checkpoints(cfg, directory.path))
        parts = build_parts(cfg)
        run_id = directory.run_id(given=agent_run_id())
        checkpoints = CheckpointFolder.of_run(directory.path, run_id)
        start = load_start(cfg, checkpoints)
        vars(state).update(vars(start.state))
        tokenizer = _keep_tokenizer(cfg, directory, start.origin.run if start.origin is not None else None)
        described = describe_environment(run_id, parts.system.describe(), plain_config(cfg))
        environment = {**described, **request.lineage, **start.lineage}
        recorder = build_recorder(cfg, directory, parts, checkpoints, state, stop, tokenizer, environment)
    afterwards.append(recorder.logger.close)
    with raising_config_errors():
        trainer: Trainer = build(cfg.trainer, parts, recorder, state)
        start.restore(trainer)
        recorder.logger.rewind(state.logged_step)
        if resumed is None or state.step < trainer.max_steps or state.pending is not None:
            environment |= {
                "model": model_summary(parts.model, parts.train_loader),
                "data": trainer.snapshot.data["fingerprints"],
            }
            record_start(request, directory, environment, start.environment)
        if start.origin is not None:
            trainer.checkpoints.save(state)  # a resume needs the origin no more, which may remove its checkpoint
    del start  # as much memory again as the model and the optimizer take
    report.announce(request, directory, trainer)
    try:
        trainer.fit()
    except DataError as error:
        again = report.resume_command(directory.path)
        raise ConfigError(f"{error}; to continue when that is fixed: {again}") from error
    stop.defers = True
    if tokenizer is not None and cfg.sample_tokens:
        block_size = trainer.train_loader.block_size

        def sample(status: str) -> None:
            with stop.at_once():
                report.show_sample(parts.model, tokenizer, parts.system, block_size, cfg, directory)

        afterwards.append(sample)


def build_recorder(
    cfg: DictConfig,
    directory: RunDirectory,
    parts: Parts,
    checkpoints: CheckpointFolder,
    state: TrainState,
    stop: StopRequest,
    tokenizer: StoredTokenizer | None,
    environment: Mapping[str, Any],
) -> Recorder:
    """Build what records the run in its directory and with its loggers; `environment` describes where it runs."""
    info = run_info(cfg, directory, environment["run_id"])
    metrics = JsonlLogger(directory.path / "metrics.jsonl")
    console = ConsoleLogger(lambda: state.step, cfg.trainer.max_steps)
    return Recorder(
        logger=CompositeLogger(metrics, [console, *(build(node, info) for node in cfg.logger.values())]),
        saver=Saver(checkpoints, before_commit=metrics.sync),  # a checkpoint counts on the metrics up to its step
        bad_batches=BadBatches(
            directory.path / "bad-batches", parts.train_loader, tokenizer.decode if tokenizer else None
        ),
        stop=stop,
        identity={
            "run_id": environment["run_id"],
            "config": info.config,
            "environment": hardware_and_software(environment),
            "code": environment["code"],
        },
    )


def _refuse_fewer_steps(cfg: DictConfig, run_dir: Path) -> None:
    done = max(checkpoint_steps(run_dir), default=0)
    if cfg.trainer.get("max_steps", done) < done:
        raise ConfigError(f"trainer.max_steps={cfg.trainer.max_steps}: the run has done {done} steps already")


def _keep_tokenizer(cfg: DictConfig, directory: RunDirectory, origin: Path | None) -> StoredTokenizer | None:
    """Copy the data's tokenizer into the run, so that sampling needs nothing else; return None if there is none.

    Where the data has none, an imported run may have one, and a fork has that of its origin.
    """
    source = next(iter(token_folders(cfg.data).values()), None)
    copied = source is not None and copy_tokenizer(source, directory.path)
    if not copied and origin is not None:
        refuse_links(origin, (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE))
        copy_tokenizer(origin, directory.path)
    return load_tokenizer(directory.path) if (directory.path / TOKENIZER_FILE).is_file() else None
