"""Checks that a tokenizer is the one of a model, and of the token files that the model is trained with."""

from collections.abc import Mapping
from pathlib import Path

from lmtrain.data.stored_tokenizer import TOKENIZER_FILE, StoredTokenizer, load_tokenizer


def refuse_more_ids(tokenizer: StoredTokenizer | None, vocab_size: int, folder: Path) -> None:
    """Raise ValueError if the tokenizer in a folder has ids that a model with `vocab_size` of them does not have."""
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{folder / TOKENIZER_FILE}: has {tokenizer.vocab_size:,} ids, but the model has only {vocab_size:,}; it "
            "is not the tokenizer of this model"
        )


def refuse_other_tokenizer(tokenizer: StoredTokenizer | None, folders: Mapping[str, Path], name: str) -> None:
    """Raise ValueError if token files were made with another tokenizer: their ids would mean other text.

    `folders` are those of the token files by their names in the config, and `name` says whose tokenizer this is.
    """
    if tokenizer is None:
        return
    for key, folder in folders.items():
        if not (folder / TOKENIZER_FILE).is_file():
            continue
        if load_tokenizer(folder).tokenizer.get_vocab() != tokenizer.tokenizer.get_vocab():
            raise ValueError(
                f"{key}={folder}: was made with another tokenizer than that of {name}, whose ids mean other text; "
                "prepare the text with the model's own (prepare/tokenizer=pretrained)"
            )
