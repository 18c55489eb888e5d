"""What records a training run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmtrain.checkpoint.saver import Saver
from lmtrain.logger.base import RunLogger
from lmtrain.loop.bad_batches import BadBatches
from lmtrain.loop.stop_request import StopRequest
from lmtrain.sample.while_training import TokenizerOfRun, no_tokenizer


@dataclass(frozen=True)
class Recorder:
    """Holds the objects that record a run, and the stop request that can end it early.

    `identity` (the run's id, config and environment) is stored in every checkpoint. `tokenizer` returns that of the
    run's data, for texts that the model writes while it is trained.
    """

    logger: RunLogger
    saver: Saver
    bad_batches: BadBatches
    stop: StopRequest = field(default_factory=StopRequest)
    identity: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: TokenizerOfRun = no_tokenizer
