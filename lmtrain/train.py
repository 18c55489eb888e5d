"""One run, from a checked config to `result.json`."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmtrain.checkpoint.folder import Checkpoint, CheckpointFolder
from lmtrain.checkpoint.fork import ForkOrigin, begin_fork, check_steps_left, forked_state, load_fork_origin
from lmtrain.checkpoint.saver import Saver
from lmtrain.checkpoint.snapshot import TrainState, train_state
from lmtrain.checkpoint.steps import checkpoint_steps, step_to_fork
from lmtrain.config.build import build, raising_config_errors
from lmtrain.config.token_files import token_folders
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE, StoredTokenizer, copy_tokenizer, load_tokenizer
from lmtrain.errors import COMPLETED, ConfigError, DataError, InterruptedBySignal, ending_of
from lmtrain.files.limited import read_json
from lmtrain.files.numbers import finite_or_none
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
from lmtrain.run.identity import config_hash, plain_config
from lmtrain.run.logger_info import run_info
from lmtrain.run.provenance import Resume, model_summary, record_start
from lmtrain.run.result import Result
from lmtrain.terminal.console import configure_logging
from lmtrain.trainer import Recorder, Trainer

log = logging.getLogger(__name__)

Afterwards = Callable[[str], None]  # takes the status in `result.json`


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
    resumed: Resume | None = None,
    lineage: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Outcome:
    """Train in a run directory and record how the run ended; `resumed` is for a run that goes on.

    `hydra_files` are the texts for `.hydra/`, by file name: the config as composed, which a resume starts from.
    `lineage` is what `environment.json` says of the run that this one repeats; `notes` are logged before it starts.

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
        with raising_config_errors():  # a folder in a file's place
            configure_logging(directory.path)
            stop = stack.enter_context(StopRequest(directory.path / PRUNE_FILE))
        error: BaseException | None = None
        afterwards: list[Afterwards] = []
        try:
            train(cfg, directory, hydra_files, state, stop, resumed, lineage or {}, notes, afterwards)
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
    return Outcome(ending.exit_code, state.best_val_loss)


def write_result(
    cfg: DictConfig, directory: RunDirectory, state: TrainState, status: str, error: BaseException | None
) -> None:
    """Write `result.json`; a disk that refuses is logged, and changes nothing of how the run ended."""
    result = Result(
        status=status,
        objective=state.best_val_loss,
        best_val_loss=state.best_val_loss,
        best_step=state.best_step,
        final_train_loss=finite_or_none(state.train_loss),
        final_val_loss=finite_or_none(state.val_loss),
        steps=state.step,
        tokens=state.tokens,
        bad_steps=state.bad_steps,
        seconds=round(state.seconds, 3),
        tokens_per_second=round(state.tokens / state.seconds, 1) if state.seconds else 0.0,
        config_hash=config_hash(plain_config(cfg)),
        error=f"{type(error).__name__}: {error}" if error else None,
    )
    try:
        directory.write_json("result.json", asdict(result))
    except OSError as refused:
        log.error("result.json could not be written: %s", refused)


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
    cfg: DictConfig,
    directory: RunDirectory,
    hydra_files: Mapping[str, str],
    state: TrainState,
    stop: StopRequest,
    resumed: Resume | None,
    lineage: Mapping[str, Any],
    notes: Sequence[str],
    afterwards: list[Afterwards],
) -> None:
    """Build the parts in the order that data flows, and run them; `state` is where the run is when this returns.

    What is to be done when the result is written, and may take long or fail, is added to `afterwards`.
    """
    with raising_config_errors():
        check_model_size(cfg, _start_checkpoints(cfg, directory.path))
        parts = build_parts(cfg)
        run_id = directory.run_id(given=agent_run_id())
        checkpoints = CheckpointFolder.of_run(directory.path, run_id)
        start = load_start(cfg, checkpoints)
        vars(state).update(vars(start.state))
        tokenizer = _keep_tokenizer(cfg, directory)
        described = describe_environment(run_id, parts.system.describe(), plain_config(cfg))
        environment = {**described, **lineage, **start.lineage}
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
            record_start(cfg, directory, hydra_files, environment, resumed, start.environment)
        if start.origin is not None:
            trainer.checkpoints.save(state)  # a resume needs the origin no more, which may remove its checkpoint
    del start  # as much memory again as the model and the optimizer take
    report.announce(cfg, directory, trainer, notes, resumed.changes if resumed else ())
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


@dataclass(frozen=True)
class Start:
    """Where a run starts: at its own newest checkpoint, at the checkpoint that it is a fork of, or at step 0."""

    own: Checkpoint | None = None
    origin: ForkOrigin | None = None

    @property
    def state(self) -> TrainState:
        """The state before the first step of this process."""
        if self.own is not None:
            return train_state(self.own)
        return TrainState() if self.origin is None else forked_state(self.origin)

    @property
    def lineage(self) -> dict[str, Any]:
        """What `environment.json` says of the run that this one comes from."""
        return {} if self.origin is None else {"forked_from": self.origin.record}

    @property
    def environment(self) -> Mapping[str, Any] | None:
        """The environment that the run's own checkpoint was saved in."""
        return None if self.own is None else self.own.state.get("environment")

    def restore(self, trainer: Trainer) -> None:
        """Put the checkpoint into the parts of the run.

        Raises:
            ValueError: it does not fit them, or a fork has no step left to do.
        """
        if self.own is not None:
            trainer.snapshot.restore(self.own)
            trainer.snapshot.begin_order_anew_if_changed(self.own, trainer.state)
            trainer.snapshot.check_batch_size(trainer.state.samples)
        elif self.origin is not None:
            begin_fork(trainer.snapshot, self.origin, trainer.state, trainer.train_loader.batch_size)
            check_steps_left(self.origin, trainer.max_steps)


def load_start(cfg: DictConfig, checkpoints: CheckpointFolder) -> Start:
    """Load the checkpoint that the run starts from, if there is one.

    Raises:
        ValueError: all checkpoints of the run are broken, or the origin of a fork has none.
    """
    if (own := checkpoints.load_latest()) is not None:
        return Start(own=own)
    if broken := checkpoints.broken():
        raise ValueError(f"{checkpoints.path}: no intact checkpoint ({', '.join(broken)}); start a new run")
    return Start(origin=load_fork_origin(Path(cfg.fork), cfg.step)) if cfg.get("fork") else Start()


def _start_checkpoints(cfg: DictConfig, run_dir: Path) -> list[Path]:
    """Return the checkpoints that the run may start from: its own, or else its origin's."""
    if steps := checkpoint_steps(run_dir):
        return [CheckpointFolder.of_run(run_dir).at(step) for step in steps]
    if not cfg.get("fork"):
        return []
    origin = Path(cfg.fork)
    return [CheckpointFolder.of_run(origin).at(step_to_fork(origin, cfg.step))]


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


def _keep_tokenizer(cfg: DictConfig, directory: RunDirectory) -> StoredTokenizer | None:
    """Copy the data's tokenizer into the run, so that sampling needs nothing else; return None if there is none.

    Where the data has none, an imported run may have one.
    """
    source = next(iter(token_folders(cfg.data).values()), None)
    if source is not None:
        copy_tokenizer(source, directory.path)
    return load_tokenizer(directory.path) if (directory.path / TOKENIZER_FILE).is_file() else None
