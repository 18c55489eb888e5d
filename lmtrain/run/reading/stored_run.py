"""Reads a finished or running run from its directory, without importing torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from lmtrain.checkpoint.steps import CHECKPOINTS, checkpoint_steps
from lmtrain.config.build import raising_config_errors
from lmtrain.config.recorded.run_names import find_run, why_no_run
from lmtrain.config.recorded.trust import read_resolved
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE, StoredTokenizer, load_tokenizer
from lmtrain.errors import ConfigError
from lmtrain.files import metrics
from lmtrain.files.limited import read_json
from lmtrain.files.links import refuse_links
from lmtrain.logger.samples import SAMPLES_FILE, read_samples
from lmtrain.machine import limit_spinning
from lmtrain.run.directory import RUN_FILES, status_without_result
from lmtrain.run.process_state import importing_from_here, using_torch
from lmtrain.run.reading.frames import FrameLibrary, frame_of
from lmtrain.run.reading.notebook_view import run_as_html
from lmtrain.terminal.paths import short_path

if TYPE_CHECKING:
    from lmtrain.run.reading.frames import Frame
    from lmtrain.run.reading.loaded import LoadedModel


@dataclass(frozen=True, repr=False)
class Run:
    """A run, read from its directory. `train` and `load_run` return it.

    Every attribute is read from the files at each access, so that it is up to date while the run is training. Only
    `load` needs torch.

    Example:
        >>> run = load_run("outputs/quickstart/20261126-101500-1a2b")
        >>> run.status, run.result["best_val_loss"]
        >>> run.frame().plot(x="step", y="train/loss")
        >>> print(run.load().sample("def ", tokens=100))

    Attributes:
        directory: The absolute path of the run's directory.
    """

    directory: Path

    @property
    def status(self) -> str:
        """`completed`, `failed`, `interrupted`, `diverged` or `pruned`; without a result `running` or `unfinished`."""
        return str(self.result.get("status") or status_without_result(self.directory))

    @property
    def config(self) -> DictConfig:
        """The resolved config, read-only, as in `run.config.optimizer.lr`."""
        return read_only(read_resolved(self.directory / "config.yaml"))

    @property
    def result(self) -> dict[str, Any]:
        """The content of `result.json` with status, losses, steps, tokens and seconds; empty until the run ends."""
        return read_json(self.directory / "result.json")

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The lines of `metrics.jsonl`, one dict per logged step, with NaN for null; empty before the first line."""
        path = self.directory / "metrics.jsonl"
        return metrics.read_metrics(path) if path.is_file() else []

    def frame(self, library: FrameLibrary | None = None) -> "Frame":
        """Return the metrics as a data frame, with a row per logged step and a column per metric.

        Args:
            library: `pandas` or `polars`; None means pandas if it is installed, else polars.

        Raises:
            ConfigError: The library is not installed.
        """
        return frame_of(self.metrics, library)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The lines of `samples.jsonl`: `step`, `prompt` and `text` of each text that the model wrote in training."""
        path = self.directory / SAMPLES_FILE
        return read_samples(path) if path.is_file() else []

    @property
    def environment(self) -> dict[str, Any]:
        """The content of `environment.json` with command, versions, git commit, hardware and hashes of your code."""
        return read_json(self.directory / "environment.json")

    @property
    def tokenizer(self) -> StoredTokenizer | None:
        """The tokenizer of the run's data, with `encode` and `decode`; None if the data had none."""
        with raising_config_errors():
            return load_tokenizer(self.directory) if (self.directory / TOKENIZER_FILE).is_file() else None

    @property
    def checkpoints(self) -> list[int]:
        """The steps that have a checkpoint, in ascending order."""
        return checkpoint_steps(self.directory)

    def load(
        self, checkpoint: str | int = "best", *, device: str = "auto", trust: str | Sequence[str] = ()
    ) -> "LoadedModel":
        """Load the model of a checkpoint with its tokenizer. The run may still be training in another process.

        Args:
            checkpoint: `best`, `latest` or a step in `checkpoints`.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            trust: A class or function named in the run's config that may be imported, such as `mymodels.Bigram`, or a
                list of them. Those that lmtrain ships or your own `./conf` names need no trust.

        Returns:
            The model in evaluation mode, with `sample` and `evaluate`.

        Raises:
            ConfigError: There is no such checkpoint, it is damaged, or the config names code that is not trusted.
            RuntimeError: A run is training in this process.
        """
        limit_spinning()
        with using_torch(), importing_from_here():
            from lmtrain.run.reading.loaded import load_model

            trusted = [trust] if isinstance(trust, str) else trust
            return load_model(self.directory, str(checkpoint), device, trusted, option="trust=")

    def __fspath__(self) -> str:
        """Return the directory, so that a run can be given wherever its directory can."""
        return str(self.directory)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the facts of the run, and its curves if matplotlib is installed."""
        return run_as_html(self.directory, self.status, self.result, self.metrics)

    def __repr__(self) -> str:
        values = {"status": self.status, "steps": (result := self.result).get("steps")}
        values["best_val_loss"] = result.get("best_val_loss")
        shown = "".join(f", {name}={value!r}" for name, value in values.items() if value is not None)
        return f"Run({short_path(self.directory)!r}{shown})"


def load_run(directory: str | os.PathLike[str]) -> Run:
    """Return the finished or running run in a directory, without importing torch.

    Args:
        directory: The run directory, such as `outputs/quickstart/20261126-101500-1a2b`; or its name, as the commands
            take it: a folder of runs for the newest run in it, `latest`, or the end of the directory's name.

    Raises:
        ConfigError: There is no run, the name means several runs, or one of the run's files is a link, which could
            point to any file on this machine.

    Example:
        >>> runs = [load_run(path.parent) for path in Path("outputs/lr").glob("*/result.json")]
        >>> min(runs, key=lambda run: run.result["best_val_loss"])
    """
    found = find_run(os.path.expanduser(os.fspath(directory)))
    if not (found / "config.yaml").is_file():
        raise ConfigError(why_no_run(found))
    path = Path(os.path.abspath(found))
    with raising_config_errors():
        refuse_links(path, (*RUN_FILES, CHECKPOINTS), below=[CHECKPOINTS])
    return Run(path)


def read_metrics(directory: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Return the metrics of a finished or running run, one dict per logged step, like `Run.metrics`.

    Args:
        directory: The directory of the run.

    Returns:
        The lines of `metrics.jsonl`, with NaN for null: `{"step": 10, "train/loss": 8.1, "lr": 6e-4, …}`.

    Raises:
        ConfigError: There is no run.

    Example:
        >>> pandas.DataFrame(read_metrics(run_directory)).set_index("step")["val/loss"].dropna()
    """
    return load_run(directory).metrics


def read_only(cfg: DictConfig) -> DictConfig:
    """Make a config refuse changes, and return it."""
    OmegaConf.set_readonly(cfg, True)
    return cfg
