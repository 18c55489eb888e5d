"""Builds the parts of a run from its checked config, in reading order."""

from omegaconf import DictConfig
from torch import nn

from lmtrain.data.loader import TokenLoader


def check_block_size(model: nn.Module, cfg: DictConfig) -> None:
    """Raises ValueError if the data's sequences are longer than the model takes."""
    longest = getattr(model, "block_size", None)
    if longest is not None and cfg.data.get("block_size", 0) > longest:
        raise ValueError(f"data.block_size={cfg.data.block_size}: longer than model.block_size={longest}")


def check_samples(train_loader: TokenLoader, cfg: DictConfig) -> None:
    """Raises ValueError if the data is used up before the run ends."""
    enough = getattr(train_loader, "max_samples", None)
    if enough is not None and "gradient_accumulation_steps" in cfg.trainer:
        step_samples = train_loader.batch_size * cfg.trainer.gradient_accumulation_steps
        if cfg.trainer.max_steps * step_samples > enough:
            raise ValueError(
                f"trainer.max_steps={cfg.trainer.max_steps}: data.max_epochs allows {enough:,} samples, which are "
                f"{enough // step_samples:,} steps"
            )
