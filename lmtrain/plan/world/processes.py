"""How many processes a planned run has, and how they share its work: the settings of `parallel` as numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmtrain.config.batch_size import check_shards, shares_model

FLOAT32, BFLOAT16 = 4, 2  # bytes
ITEM_BYTES: Mapping[str | None, int] = {None: FLOAT32, "float32": FLOAT32, "bfloat16": BFLOAT16}
DDP, FSDP = "ddp", "fsdp"


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        size: Their number.
        kind: `ddp`, where each has the whole model, or `fsdp`, where several share one copy.
        shards: Processes that share one copy of the model; 1 with DDP.
        reshard: Whether a layer is gathered again for the backward, instead of kept until the step has ended.
        reduces_each: Whether gradients are sent after each micro-batch, instead of after the last one.
        gathered_bytes: Bytes of a number in gathered weights.
        reduced_bytes: Bytes of a number in gradients on their way.
        bucket_bytes: Bytes of gradients that DDP sends at once.
    """

    size: int
    kind: str = DDP
    shards: int = 1
    reshard: bool = True
    reduces_each: bool = False
    gathered_bytes: int = FLOAT32
    reduced_bytes: int = FLOAT32
    bucket_bytes: int = 25 * 2**20

    @property
    def copies(self) -> int:
        """Return the number of copies of the model, each of which one group of `shards` processes has."""
        return self.size // self.shards

    @property
    def gathers_in_16_bits(self) -> bool:
        """Return whether gathered weights are in 16 bits, so that a step needs no copy of them in 16 bits."""
        return self.kind == FSDP and self.gathered_bytes == BFLOAT16

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> "Processes | None":
        """Return the processes that a checked config names; None for a run of one process.

        Raises:
            ConfigError: `parallel.shards` does not divide the number of processes.
        """
        node: Mapping[str, Any] = cfg.get("parallel") or {}
        size = node.get("world_size")
        if size is None or size == 1:
            return None
        if not shares_model(cfg):
            return cls(size, bucket_bytes=round((node.get("bucket_mb") or 25) * 2**20))
        shards = node.get("shards") or size
        check_shards(cfg, size)
        return cls(
            size,
            FSDP,
            shards,
            bool(node.get("reshard_after_forward", True)),
            bool(node.get("reduce_each_micro_batch", False)),
            ITEM_BYTES[node.get("param_dtype")],
            ITEM_BYTES[node.get("reduce_dtype")],
        )

    def describe(self) -> str:
        """Return the processes in words."""
        if self.kind == DDP:
            return f"{self.size:,} processes with DDP: each has the whole model"
        if self.copies == 1:
            return f"{self.size:,} processes with FSDP: they share one copy of the model"
        if self.shards == 1:
            return f"{self.size:,} processes with FSDP: each has the whole model"
        return f"{self.size:,} processes with FSDP: {self.copies:,} copies of the model, each shared by {self.shards:,}"
