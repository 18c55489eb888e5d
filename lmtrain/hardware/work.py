"""Describes the work of a run, as far as the choice of number format and compilation depends on it."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Work:
    """The matrix products of a run.

    Attributes:
        flops: FLOPs of all steps that are left.
        products_per_cast: Multiplications of a matrix product for each number that mixed precision casts before it. It
            is larger for wide models and for micro-batches with many tokens.
    """

    flops: float
    products_per_cast: float


NO_WORK = Work(flops=0.0, products_per_cast=0.0)


def products_per_cast(model: nn.Module, tokens: int) -> float:
    """Return the multiplications per number that has to be cast, over all matrices of a model.

    A product of `tokens` rows with a matrix multiplies tokens · rows · columns times. Mixed precision casts its input,
    the gradient of its output, and the matrix. Embeddings do not count, since looking up is no product.
    """
    layers = [layer for layer in model.modules() if not isinstance(layer, nn.Embedding)]
    matrices = {param for layer in layers for param in layer.parameters(recurse=False) if param.ndim == 2}
    products = casts = 0
    for rows, columns in (matrix.shape for matrix in matrices):
        products += tokens * rows * columns
        casts += tokens * (rows + columns) + rows * columns
    return products / casts if casts else 0.0
