"""nanoGPT's `ckpt.pt`: its weights and AdamW state under lmtrain's names, and its settings as overrides.

Both models keep their matrices as (out, in) and queries, keys and values in one of them, so tensors change their name
alone. What nanoGPT calls an iteration is an optimizer step here.
"""

import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmtrain.convert.nanogpt_settings import Value, checked_number, model_overrides, settings_overrides
from lmtrain.model.gpt2 import GPT2
from lmtrain.terminal.as_text import first_few

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
    """A checkpoint that was read: tensors by lmtrain's names, in nanoGPT's order of parameters."""

    model_args: Mapping[str, Any]
    config: Mapping[str, Any]  # the settings of its training; empty if the file has none
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]  # as `lmtrain.checkpoint.optimizer_state` gives it
    adamw: Mapping[str, Value]  # overrides: betas, eps and weight decay as the optimizer has them
    iter_num: int
    best_val_loss: float | None  # measured at this very iteration: nanoGPT saves when it has evaluated

    def overrides(self) -> dict[str, Value]:
        """Return the config of the run that goes on: groups (`model`) and values (`model.n_layer`)."""
        return {**model_overrides(self.model_args), **settings_overrides(self.config), **self.adamw}

    def tokens_per_step(self) -> int | None:
        """Return the tokens of a step of the training so far; None if the file does not say."""
        keys = ("batch_size", "block_size", "gradient_accumulation_steps")
        return math.prod(int(self.config[key]) for key in keys) if self.config.keys() >= {*keys} else None


def read_nanogpt_checkpoint(path: Path) -> NanoGPTCheckpoint:
    """Read a checkpoint onto the CPU; a file with more than tensors and plain values in it is not unpickled.

    Raises:
        ValueError: there is none, or it is not one of nanoGPT's GPT-2.
    """
    if not path.is_file():
        inside = path / "ckpt.pt"
        raise ValueError(f"{path}: no such file" + (f"; did you mean {inside}?" if inside.is_file() else ""))
    _refuse_compressed(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # of many kinds: what is not torch's can break its reader anywhere
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(f"{path}: holds more than tensors and plain values ({found[1]}); not loaded") from error
        raise ValueError(f"{path}: not a file of torch.save, or damaged ({type(error).__name__})") from error
    try:
        return parse_nanogpt_checkpoint(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_nanogpt_checkpoint(content: object) -> NanoGPTCheckpoint:
    """Return the checkpoint that `torch.load` gave the content of.

    Raises:
        ValueError: naming what is missing, unexpected or of another size.
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
    _refuse_shared_memory([value for part in parts if isinstance(part, dict) for value in part.values()])
    weights = convert_weights(content["model"])
    _check_sizes(content["model_args"], weights)
    # Before the optimizer, whose indices say nothing if the weights are others.
    check_weights_fit(weights, _empty_model(content["model_args"]).state_dict())
    optimizer, adamw = convert_optimizer(content["optimizer"], weights)
    best = loss if math.isfinite(loss) and loss < NO_LOSS_YET else None
    return NanoGPTCheckpoint(content["model_args"], config, weights, optimizer, adamw, iter_num, best)


def convert_weights(state_dict: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the parameters by lmtrain's names, each once, in their order; without prefixes and causal masks.

    Raises:
        ValueError: naming what is not a GPT-2's, or an output layer that is not the embedding.
    """
    stripped = {re.sub(r"^(_orig_mod\.|module\.)+", "", str(name)): value for name, value in state_dict.items()}
    # The mask is a buffer, which versions without fused attention keep beside the biases of its layers.
    stripped = {name: value for name, value in stripped.items() if not re.search(r"\.attn\.bias$", name)}
    head, embedding = stripped.pop("lm_head.weight", None), stripped.get("transformer.wte.weight")
    if unknown := [name for name, value in stripped.items() if not our_name(name) or not isinstance(value, Tensor)]:
        raise ValueError(f"the model is not nanoGPT's GPT-2: unexpected {first_few(unknown)}")
    if embedding is None:
        raise ValueError("the model is not nanoGPT's GPT-2: transformer.wte.weight is missing")
    if head is not None and not torch.equal(head, embedding):
        raise ValueError("lm_head.weight is not transformer.wte.weight, which nanoGPT ties")
    return {our_name(name): value for name, value in stripped.items()}


def convert_optimizer(
    optimizer: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Value]]:
    """Return AdamW's state by lmtrain's names, and its settings as overrides; `weights` are in nanoGPT's order.

    Its indices count the decayed parameters first, those of two or more dimensions, then the others.

    Raises:
        ValueError: it is not the state of AdamW over these weights.
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
            if _size(values[key]) != _size(weights[name]):
                raise ValueError(
                    f"optimizer: {key} of state {index} is {_size(values[key])}, but {their_name(name)} is "
                    f"{_size(weights[name])}"
                )
            tensors[f"{name}/{key}"] = values[key]
        # Files of torch 1 have a plain number there.
        tensors[f"{name}/step"] = torch.tensor(_scalar(f"optimizer: step of state {index}", values["step"]))
    # As the groups have them: nanoGPT's own resume takes these, too, and not the ones of its config.
    group = groups[0]
    overrides: dict[str, Value] = {
        f"optimizer.{key}": checked_number(f"optimizer: {key}", group[key]) for key in ("weight_decay", "eps")
    }
    return tensors, {
        **overrides,
        "optimizer.betas": [checked_number("optimizer: betas", beta) for beta in group["betas"]],
    }


def check_weights_fit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise a ValueError, in nanoGPT's names, unless names, sizes and order are those of the model's state."""
    problems = []
    if missing := [their_name(name) for name in expected if name not in weights]:
        problems.append(f"{first_few(missing)} missing")
    if unexpected := [their_name(name) for name in weights if name not in expected]:
        problems.append(f"{first_few(unexpected)} unexpected")
    if sizes := [
        f"{their_name(name)} is {_size(weights[name])} and not {_size(expected[name])}"
        for name in expected
        if name in weights and weights[name].shape != expected[name].shape
    ]:
        problems.append(first_few(sizes))
    if not problems and list(weights) != list(expected):  # the optimizer's indices say nothing then
        problems.append("they are not in nanoGPT's order")
    if problems:
        raise ValueError(f"the weights do not fit the model: {'; '.join(problems)}")


def our_name(name: str) -> str:
    """Return lmtrain's name of a nanoGPT parameter; empty if there is none."""
    if found := re.fullmatch(r"transformer\.h\.(\d+)\.(.+)\.(weight|bias)", name):
        layer, part, kind = found.groups()
        return f"layers.{layer}.{INNER[part]}.{kind}" if part in INNER else ""
    part, _, kind = name.rpartition(".")
    return f"{OUTER[part]}.{kind}" if part in OUTER else ""


def their_name(name: str) -> str:
    """Return nanoGPT's name of a parameter of lmtrain's GPT-2; any other name stays as it is."""
    outer, inner = ({ours: theirs for theirs, ours in table.items()} for table in (OUTER, INNER))
    if found := re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name):
        layer, part, kind = found.groups()
        return f"transformer.h.{layer}.{inner[part]}.{kind}" if part in inner else name
    part, _, kind = name.rpartition(".")
    return f"{outer[part]}.{kind}" if part in outer else name


def _empty_model(model_args: Mapping[str, Any]) -> GPT2:
    options = {key.removeprefix("model."): value for key, value in model_overrides(model_args).items() if "." in key}
    with torch.device("meta"):
        return GPT2(**options)  # type: ignore[arg-type]


def _check_sizes(model_args: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Check the sizes that a file claims before a model of these sizes is built: they may be anything."""
    sizes = model_overrides(model_args)
    blocks = len({name.split(".")[1] for name in weights if name.startswith("layers.")})
    if blocks != sizes["model.n_layer"]:
        raise ValueError(f"model_args says n_layer={sizes['model.n_layer']}, but the model has {blocks} blocks")
    for name, rows in (("embedding.weight", "vocab_size"), ("positions.weight", "block_size")):
        expected = f"{sizes[f'model.{rows}']} × {sizes['model.d_model']}"
        if name in weights and _size(weights[name]) != expected:
            raise ValueError(
                f"model_args says {rows} × n_embd = {expected}, but {their_name(name)} is {_size(weights[name])}"
            )


def _is_adamw(group: object) -> bool:
    return (
        isinstance(group, dict)
        and group.keys() >= {"params", "betas", "eps", "weight_decay"}
        and all(isinstance(group[key], list | tuple) for key in ("params", "betas"))
    )


def _refuse_compressed(path: Path) -> None:
    """Raise a ValueError for an archive that would fill more memory than the file has bytes; torch.save makes none."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):  # torch 1.5 and earlier; damage, which torch names
        return
    if unpacked > path.stat().st_size:
        raise ValueError(
            f"{path}: compressed, to unpack to {unpacked:,} bytes, which torch.save never does; not loaded"
        )


def _refuse_shared_memory(values: Sequence[object]) -> None:
    """Raise a ValueError if tensors have more elements than the file: a view may repeat one number without end."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if odd := [tensor for tensor in tensors if tensor.layout != torch.strided or tensor.device.type != "cpu"]:
        raise ValueError(f"a tensor of {_size(odd[0])} is not a plain one ({odd[0].layout}, {odd[0].device})")
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    claimed = sum(tensor.nbytes for tensor in tensors)
    if claimed > 2 * sum(stored.values()):  # the output layer is the embedding, under another name
        raise ValueError(f"its tensors would take {claimed:,} bytes, but it holds {sum(stored.values()):,}")


def _scalar(name: str, value: object) -> float:
    if not isinstance(value, int | float | Tensor) or (isinstance(value, Tensor) and value.numel() != 1):
        raise ValueError(f"{name} is {_size(value)}, not a number")
    try:
        return float(value)
    except (OverflowError, TypeError, RuntimeError) as error:  # an integer beyond all floats; a complex tensor
        raise ValueError(f"{name} is not a number that a float can hold") from error


def _size(value: object) -> str:
    return " × ".join(map(str, value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
