"""Lets Linear layers multiply in 8 bits, with torchao."""

from torch import nn

MULTIPLE = 16  # tensor cores multiply 8-bit matrices whose sides are multiples of this
# Parameters. nanochat's models were slower in float8 with 12 layers, and 5% faster with 24 (about a billion).
PAYS_FROM = 5e8


def is_converted(layer: nn.Module, vocab_size: int | None) -> bool:
    """Return whether a layer multiplies in 8 bits: a Linear layer of fitting sizes, but not the output layer.

    The logits need more precision.
    """
    return (
        isinstance(layer, nn.Linear)
        and layer.in_features % MULTIPLE == 0
        and layer.out_features % MULTIPLE == 0
        and layer.out_features != vocab_size
    )


def convert_to_float8(model: nn.Module) -> int:
    """Replace the Linear layers of a model, in place; return how many.

    Parameters stay the same objects, in float32 and with the same names. Their scale is one number a tensor, computed
    anew in each step (the recipe `tensorwise`).
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    vocab_size = getattr(model, "vocab_size", None)
    layers = sum(is_converted(layer, vocab_size) for layer in model.modules())
    convert_to_float8_training(
        model,
        config=Float8LinearConfig.from_recipe_name("tensorwise"),
        module_filter_fn=lambda layer, name: is_converted(layer, vocab_size),
    )
    return layers
