"""What processes of a run other than the first have instead of its log and checkpoint folder: they write nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lmtrain.checkpoint.files import Checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder, Retention
from lmtrain.checkpoint.recorder import Recorder
from lmtrain.checkpoint.saver import Saver
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE, load_tokenizer
from lmtrain.loop.bad_batches import BadBatches
from lmtrain.loop.bad_steps import BadStep
from lmtrain.loop.stop_request import StopRequest
from lmtrain.loop.training_parts import Parts


def following_recorder(
    run_dir: Path, saver: Saver, parts: Parts, stop: StopRequest, identity: Mapping[str, object]
) -> Recorder:
    """Return a recorder that writes nothing but what the saver writes."""
    return Recorder(
        logger=NoLogger(),
        saver=saver,
        bad_batches=UnwrittenBatches(run_dir / "bad-batches", parts.train_loader, decode=None),
        stop=stop,
        identity=identity,
        tokenizer=lambda: load_tokenizer(run_dir) if (run_dir / TOKENIZER_FILE).is_file() else None,
    )


class ReadOnlyFolder(CheckpointFolder):
    """A checkpoint folder that another process writes."""

    def discard_after(self, step: int) -> None:
        """Leave that to the first process."""

    def _set_aside(self, path: Path, name: str, reason: str) -> None:
        """Leave that to the first process, which has found the same fault."""


class ReadingSaver(Saver):
    """A saver that saves nothing."""

    def reserve(self, checkpoint: Checkpoint) -> None:
        """Allocate nothing."""
        self.reserved = True

    def save(self, step: int, checkpoint: Checkpoint, retention: Retention) -> None:
        """Leave that to the first process."""


class UnwrittenBatches(BadBatches):
    """Bad batches that the first process writes."""

    def keep(self, bad: BadStep) -> Path:
        """Return the folder in which the first process writes the batch."""
        return self.folder


class NoLogger:
    """A logger that logs nothing."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Leave that to the first process."""

    def rewind(self, step: int) -> None:
        """Leave that to the first process."""

    def log_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        """Leave that to the first process."""

    def close(self, status: str) -> None:
        """Do nothing."""
