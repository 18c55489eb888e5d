"""Lets a new run begin with the weights of a Hugging Face folder or of another run (`init_from`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmtrain.checkpoint.files import Checkpoint, load_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.checkpoint.steps import CHECKPOINTS, chosen_step
from lmtrain.convert.hugging_face.read_folder import read_hugging_face_folder
from lmtrain.convert.imported_model import ImportedModel, check_fits
from lmtrain.convert.tokenizer_check import refuse_other_tokenizer
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE, load_tokenizer
from lmtrain.errors import BrokenCheckpointError
from lmtrain.files.durable import sha256_of
from lmtrain.files.links import refuse_links
from lmtrain.loop.evaluation_weights import EMA, OF_OPTIMIZER
from lmtrain.trainer import Trainer


def begin_with_weights(trainer: Trainer, folder: Path, tokenizers: Mapping[str, Path]) -> dict[str, Any]:
    """Load the weights into the model of a trainer at step 0, and return what the run records about them.

    Every process of the run calls it.

    Args:
        trainer: The trainer.
        folder: A Hugging Face folder, or a run directory, whose best checkpoint is taken.
        tokenizers: The folders of the run's token files by their names in the config; a folder may have a tokenizer.

    Raises:
        ValueError: There are no such weights, they do not fit the model, or the token files were made with another
            tokenizer.
        OSError: A file can't be read.
    """
    try:
        source = _of_run(folder) if (folder / "config.yaml").is_file() else read_hugging_face_folder(folder)
        check_fits(source.weights, trainer.model, source.their_name)
    except ValueError as error:
        raise ValueError(f"init_from={folder}: {error}") from error
    refuse_other_tokenizer(source.tokenizer, tokenizers, f"init_from={folder}")
    trainer.snapshot.restore_model(Checkpoint({"model": source.weights}))
    trainer.evaluation_weights.restore({})  # a running mean begins with these weights, too
    return {**source.record, "folder": str(folder.resolve())}


def _of_run(run: Path) -> ImportedModel:
    """Return the weights with which a run's best checkpoint is used."""
    refuse_links(run, [CHECKPOINTS], below=[CHECKPOINTS])
    checkpoints = CheckpointFolder.of_run(run)
    if not checkpoints.steps():
        raise ValueError("has no checkpoint")
    path = checkpoints.at(chosen_step(run, "best"))
    try:
        tensors = load_checkpoint(path).tensors
    except BrokenCheckpointError as error:
        raise ValueError(f"{path.name}: {error}") from error
    used = tensors.get(EMA) or tensors.get(OF_OPTIMIZER) or {}
    files = sorted(path.glob("*.safetensors"))
    return ImportedModel(
        settings={},
        weights={**tensors.get("model", {}), **used},
        tokenizer=load_tokenizer(run) if (run / TOKENIZER_FILE).is_file() else None,
        record={
            "checkpoint": path.name,
            "sha256": {
                file.name: sha256_of(file)
                for file in files
                if file.name.startswith(("model.", f"{EMA}.", f"{OF_OPTIMIZER}."))
            },
        },
    )
