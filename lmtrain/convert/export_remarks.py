"""Remarks on exported models that do not depend on the format: what other programs compute in another way."""

from collections.abc import Mapping
from typing import Any


def remarks_on_documents(model: Mapping[str, Any], program: str) -> list[str]:
    """Return a remark if a model was trained to see each document alone, which no other program does.

    `model` is the node of the run's config.
    """
    if not model.get("mask_documents"):
        return []
    return [
        f"the model was trained with model.mask_documents=true: give it one document at a time, since {program} "
        "neither restarts positions at the end of a text nor keeps attention inside a document"
    ]
