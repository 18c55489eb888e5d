"""Reads nanoGPT's `ckpt.pt`: its weights and AdamW state under lmtrain's names, and its settings as overrides.

Both models store matrices as (out, in), with queries, keys and values in one matrix, so only the names of tensors
change. An iteration of nanoGPT is an optimizer step here.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmtrain.convert.imported_model import Value, check_finite, check_fits, check_formats
from lmtrain.convert.nanogpt.settings import checked_number, model_overrides, settings_overrides
from lmtrain.convert.torch_file import read_torch_file, refuse_shared_memory, size_text
from lmtrain.loop.training_parts import Parts
from lmtrain.model.gpt2 import GPT2
from lmtrain.model.size_limit import WithoutMemory
from lmtrain.terminal.as_text import first_few
from lmtrain.terminal.units import counted

KEYS = ("model", "optimizer", "model_args", "iter_num", "best_val_loss")
MOST_ITERATIONS = 10**12
NO_LOSS_YET = 1e9  # nanoGPT's best_val_loss before its first evaluation

OUTER = {"transformer.wte": "embedding", "transformer.wpe": "positions", "transformer.ln_f": "norm"}
INNER = {
    "ln_1": "attention_norm",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.o",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "mlp.up",
    "mlp.c_proj": "mlp.down",
}
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class NanoGPTCheckpoint:
    """Holds a nanoGPT checkpoint: tensors by lmtrain's names, in nanoGPT's order of parameters."""

    model_args: Mapping[str, Any]
    config: Mapping[str, Any]  # training settings; empty if the file has none
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]  # in the format of `lmtrain.checkpoint.optimizer_state`
    adamw: Mapping[str, Value]  # overrides with the betas, eps and weight decay of the optimizer
    iter_num: int
    best_val_loss: float | None  # measured at this iteration, since nanoGPT saves after an evaluation

    def overrides(self) -> dict[str, Value]:
        """Return overrides for a run that continues this one: groups (`model`) and values (`model.n_layer`)."""
        return {**model_overrides(self.model_args), **settings_overrides(self.config), **self.adamw}

    def tokens_per_step(self) -> int | None:
        """Return the tokens per step of the training so far; None if the file does not say."""
        keys = ("batch_size", "block_size", "gradient_accumulation_steps")
        return math.prod(int(self.config[key]) for key in keys) if self.config.keys() >= {*keys} else None

    @property
    def step(self) -> int:
        return self.iter_num

    def check(self, parts: Parts) -> None:
        """Raise ValueError unless weights and optimizer fit the parts of a run."""
        if not isinstance(parts.model, GPT2):
            raise ValueError(f"model: {type(parts.model).__name__}, but a nanoGPT checkpoint needs model=gpt2")
        if not isinstance(parts.optimizer, torch.optim.AdamW):
            name = type(parts.optimizer).__name__
            raise ValueError(f"optimizer={name}: the checkpoint has the state of AdamW; use optimizer=adamw")
        check_weights_fit(self.weights, parts.model)


def read_nanogpt_checkpoint(path: Path) -> NanoGPTCheckpoint:
    """Read a checkpoint onto the CPU. A file with more than tensors and plain values is not unpickled.

    Raises:
        ValueError: there is no such file, or it is not a checkpoint of nanoGPT's GPT-2.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    content = read_torch_file(path)
    try:
        return parse_nanogpt_checkpoint(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_nanogpt_checkpoint(content: object) -> NanoGPTCheckpoint:
    """Return the checkpoint for the content that `torch.load` returned.

    Raises:
        ValueError: an entry is missing or unexpected, or has a wrong size; the message names it.
    """
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}, not nanoGPT's dict of {', '.join(KEYS)}")
    if missing := [key for key in KEYS if key not in content]:
        raise ValueError(
            f"not a checkpoint of nanoGPT: {', '.join(missing)} missing (it has {first_few(content) or 'nothing'})"
        )
    config = content.get("config") or {}
    for key, value in {**content, "config": config}.items():
        if key in ("model", "optimizer", "model_args", "config") and not isinstance(value, dict):
            raise ValueError(f"{key} is a {type(value).__name__}, not a dict")
    iter_num, loss = content["iter_num"], _scalar("best_val_loss", content["best_val_loss"])
    if type(iter_num) is not int or not 0 <= iter_num <= MOST_ITERATIONS:
        raise ValueError(f"iter_num={iter_num!r}: not a number of iterations")
    states = content["optimizer"].get("state")
    parts = [content["model"], *(states.values() if isinstance(states, dict) else ())]
    refuse_shared_memory([value for part in parts if isinstance(part, dict) for value in part.values()])
    weights = convert_weights(content["model"])
    _check_sizes(content["model_args"], weights)
    # Checked before the optimizer, whose indices mean nothing for other weights.
    check_weights_fit(weights, _empty_model(content["model_args"]))
    optimizer, adamw = convert_optimizer(content["optimizer"], weights)
    best = loss if math.isfinite(loss) and loss < NO_LOSS_YET else None
    return NanoGPTCheckpoint(content["model_args"], config, weights, optimizer, adamw, iter_num, best)


def convert_weights(state_dict: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the parameters by lmtrain's names, each once and in their order, without prefixes and causal masks.

    Raises:
        ValueError: a name is not one of GPT-2, or the output layer is not the embedding.
    """
    stripped = {re.sub(r"^(_orig_mod\.|module\.)+", "", str(name)): value for name, value in state_dict.items()}
    # The causal mask is a buffer with this name in versions without fused attention.
    stripped = {name: value for name, value in stripped.items() if not re.search(r"\.attn\.bias$", name)}
    head, embedding = stripped.pop("lm_head.weight", None), stripped.get("transformer.wte.weight")
    if unknown := [name for name, value in stripped.items() if not our_name(name) or not isinstance(value, Tensor)]:
        raise ValueError(f"the model is not nanoGPT's GPT-2: unexpected {first_few(unknown)}")
    if embedding is None:
        raise ValueError("the model is not nanoGPT's GPT-2: transformer.wte.weight is missing")
    if head is not None:
        if not isinstance(head, Tensor):
            raise ValueError(f"lm_head.weight is {size_text(head)}, not a tensor")
        check_formats({"lm_head.weight": head})
        check_finite({"lm_head.weight": head})  # NaN is not equal to itself
        if head.dtype != embedding.dtype or not torch.equal(head, embedding):
            raise ValueError("lm_head.weight is not transformer.wte.weight, which nanoGPT ties")
    return {our_name(name): value for name, value in stripped.items()}


def convert_optimizer(
    optimizer: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Value]]:
    """Return AdamW's state by lmtrain's names, and its settings as overrides; `weights` are in nanoGPT's order.

    Its indices first count the decayed parameters, which have two or more dimensions, and then the others.

    Raises:
        ValueError: this is not the state of AdamW for these weights.
    """
    decayed = [name for name, value in weights.items() if value.ndim >= 2]
    undecayed = [name for name, value in weights.items() if value.ndim < 2]
    groups, state = optimizer.get("param_groups"), optimizer.get("state")
    if not isinstance(groups, list) or not isinstance(state, dict) or not all(map(_is_adamw, groups)):
        raise ValueError("optimizer: not the state of AdamW (state, and param_groups with betas, eps, weight_decay)")
    if not all(type(index) is int for group in groups for index in group["params"]):
        raise ValueError("optimizer: params of a group are not indices")
    if (sizes := [len(group["params"]) for group in groups]) != [len(decayed), len(undecayed)]:
        raise ValueError(
            f"optimizer: groups of {' and '.join(map(str, sizes))} tensors, where nanoGPT's AdamW decays "
            f"{len(decayed)} and not the other {len(undecayed)}"
        )
    tensors: dict[str, Tensor] = {}
    indices = [index for group in groups for index in group["params"]]
    for index, name in zip(indices, [*decayed, *undecayed], strict=True):
        values = state.get(index)
        if not isinstance(values, dict) or values.keys() != {"step", *MOMENTS}:
            raise ValueError(f"optimizer: state {index}, of {their_name(name)}, is not step, exp_avg and exp_avg_sq")
        for key in MOMENTS:
            if size_text(values[key]) != size_text(weights[name]):
                raise ValueError(
                    f"optimizer: {key} of state {index} is {size_text(values[key])}, but {their_name(name)} is "
                    f"{size_text(weights[name])}"
                )
            check_formats(found := {f"optimizer: {key} of state {index}, of {their_name(name)}": values[key]})
            check_finite(found)
            tensors[f"{name}/{key}"] = values[key]
        # Files of torch 1 have a plain number there.
        step = _scalar(f"optimizer: step of state {index}", values["step"])
        if not 0 <= step <= MOST_ITERATIONS:
            raise ValueError(f"optimizer: step of state {index} is {step}, not a number of iterations")
        tensors[f"{name}/step"] = torch.tensor(step)
    # nanoGPT's own resume also uses the settings in the groups and not those in its config.
    group = groups[0]
    overrides: dict[str, Value] = {
        f"optimizer.{key}": checked_number(f"optimizer: {key}", group[key]) for key in ("weight_decay", "eps")
    }
    return tensors, {
        **overrides,
        "optimizer.betas": [checked_number("optimizer: betas", beta) for beta in group["betas"]],
    }


def check_weights_fit(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise ValueError, with nanoGPT's names, unless these are the tensors of the model in its sizes and order."""
    check_fits(weights, model, their_name)
    if list(weights) != list(model.state_dict()):  # the optimizer's indices would mean other parameters
        raise ValueError("the weights do not fit the model: they are not in nanoGPT's order")


def our_name(name: str) -> str:
    """Return lmtrain's name of a nanoGPT parameter, or an empty string if there is none."""
    if found := re.fullmatch(r"transformer\.h\.(\d+)\.(.+)\.(weight|bias)", name):
        layer, part, kind = found.groups()
        return f"layers.{layer}.{INNER[part]}.{kind}" if part in INNER else ""
    part, _, kind = name.rpartition(".")
    return f"{OUTER[part]}.{kind}" if part in OUTER else ""


def their_name(name: str) -> str:
    """Return nanoGPT's name of a parameter of lmtrain's GPT-2, or the name itself if there is none."""
    outer, inner = ({ours: theirs for theirs, ours in table.items()} for table in (OUTER, INNER))
    if found := re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name):
        layer, part, kind = found.groups()
        return f"transformer.h.{layer}.{inner[part]}.{kind}" if part in inner else name
    part, _, kind = name.rpartition(".")
    return f"{outer[part]}.{kind}" if part in outer else name


def _empty_model(model_args: Mapping[str, Any]) -> GPT2:
    options = {key.removeprefix("model."): value for key, value in model_overrides(model_args).items() if "." in key}
    with WithoutMemory():  # torch.device("meta") would import the compiler, which takes more than a second
        return GPT2(**options)  # type: ignore[arg-type]


def _check_sizes(model_args: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Check the sizes that a file claims before a model is built with them, since they could be huge."""
    sizes = model_overrides(model_args)
    blocks = len({name.split(".")[1] for name in weights if name.startswith("layers.")})
    if blocks != sizes["model.n_layer"]:
        raise ValueError(
            f"model_args says n_layer={sizes['model.n_layer']}, but the model has {counted(blocks, 'block')}"
        )
    for name, rows in (("embedding.weight", "vocab_size"), ("positions.weight", "block_size")):
        expected = f"{sizes[f'model.{rows}']} × {sizes['model.d_model']}"
        if name in weights and size_text(weights[name]) != expected:
            raise ValueError(
                f"model_args says {rows} × n_embd = {expected}, but {their_name(name)} is {size_text(weights[name])}"
            )


def _is_adamw(group: object) -> bool:
    return (
        isinstance(group, dict)
        and group.keys() >= {"params", "betas", "eps", "weight_decay"}
        and all(isinstance(group[key], list | tuple) for key in ("params", "betas"))
    )


def _scalar(name: str, value: object) -> float:
    if not isinstance(value, int | float | Tensor) or (isinstance(value, Tensor) and value.numel() != 1):
        raise ValueError(f"{name} is {size_text(value)}, not a number")
    try:
        return float(value)
    except (OverflowError, TypeError, RuntimeError) as error:  # a huge integer, or a complex tensor
        raise ValueError(f"{name} is not a number that fits into a float") from error
