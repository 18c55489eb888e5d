"""Writes event files for TensorBoard; `tensorboard --logdir outputs` shows all runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmtrain.errors import COMPLETED
from lmtrain.logger.base import RunInfo

COMPARED = ("val/loss", "train/loss", "tokens_per_second")  # metric columns of the HParams tab
SESSION_END = "_hparams_/session_end_info"  # the tag that the HParams plugin expects


class TensorBoardLogger:
    """Writes scalars to `<run directory>/tensorboard/`, and the config by dotted key for the HParams tab.

    A step is in the file when `log` returns. Steps that are run again replace those written before.
    """

    def __init__(self, run: RunInfo) -> None:
        self.folder = run.directory / "tensorboard"
        self.config = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in run.flat_config.items()
            if not name.startswith("logger.")
        }
        self._writer: Any = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._writer = self._writer or self._open(first_step=None)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        """Show texts on the tab for text, as code, since they are no Markdown."""
        self._writer = self._writer or self._open(first_step=None)
        for number, (prompt, text) in enumerate(samples):
            lines = f"{prompt}▸{text}".splitlines() or [""]
            self._writer.add_text(f"sample/{number}", "\n".join(f"    {line}" for line in lines), step)
        self._writer.flush()

    def rewind(self, step: int) -> None:
        """Hide the steps after this one: a new event file tells TensorBoard to drop them."""
        if self._writer:
            self._writer.close()
        self._writer = self._open(first_step=step + 1)

    def close(self, status: str) -> None:
        if self._writer:
            self._writer._get_file_writer().add_summary(_session_end(succeeded=status == COMPLETED.status))
            self._writer.close()

    def _open(self, first_step: int | None) -> Any:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard import summary as summaries

        writer: Any = SummaryWriter(str(self.folder), purge_step=first_step)
        hparams: Any = summaries.hparams  # has no type annotations
        experiment, session_start, _ = hparams(self.config, dict.fromkeys(COMPARED, 0.0))
        for summary in (experiment, session_start):
            writer._get_file_writer().add_summary(summary)
        writer.flush()
        return writer


def _session_end(*, succeeded: bool) -> Any:
    """Return the summary that ends a session; the one of torch always says success."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    end = SessionEndInfo(status=Status.Value("STATUS_SUCCESS" if succeeded else "STATUS_FAILURE"))
    content = HParamsPluginData(session_end_info=end, version=0).SerializeToString()
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content)
    return Summary(value=[Summary.Value(tag=SESSION_END, metadata=SummaryMetadata(plugin_data=plugin))])
