"""Any causal language model of the package transformers, from its config and with new weights."""

import contextlib
import difflib
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from lmtrain.model.document_mask import document_opening_id, starts_and_positions
from lmtrain.model.loss import linear_cross_entropy

INSTALL = "pip install 'lmtrain[transformers]'"
TransformersAttention = Literal["sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"]
# Fields of a config that lmtrain sets, with what to give instead.
OURS = {
    "vocab_size": "model.vocab_size",
    "max_position_embeddings": "model.block_size",
    "attn_implementation": "model.attention",
    "dtype": "system.dtype",
    "torch_dtype": "system.dtype",
    "use_cache": None,
    "auto_map": None,  # it names code in other files
    "architectures": None,
}
CONFIG_FIELD = re.compile(r"\bconfig(?:\.|, \")([a-z]\w*)")  # where code reads a field of its config
CHANGED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # fields of models that change the logits


class TransformersModel(nn.Module):
    """Maps token ids to next-token logits with a model of transformers. Its weights are new, as its class makes them.

    Args:
        config: `model_type`, and values of fields of that model's config class; null means the class's default.
        vocab_size: Number of token ids, at least as many as the data has. In a config, null means as many.
        block_size: Longest sequence, in tokens; models with learned positions have as many.
        mask_documents: Keep attention inside a document, and restart positions in each (see
            `lmtrain.model.document_mask`).
        end_of_text: Token id that opens a document, for `mask_documents`. In a config, null means the data's id.
        attention: Attention of transformers; null means what it chooses for the model.
        recompute: `layer` computes the activations of each layer again in the backward, which saves memory.

    Raises:
        ValueError: transformers is not installed, it has no such model or field, the model cannot mask documents, or
            `mask_documents` has no valid `end_of_text`.
    """

    def __init__(
        self,
        config: dict[str, Any],
        vocab_size: PositiveInt,
        block_size: PositiveInt,
        mask_documents: bool = False,
        end_of_text: NonNegativeInt | None = None,
        attention: TransformersAttention | None = None,
        recompute: Literal["none", "layer"] = "none",
    ) -> None:
        super().__init__()
        self.vocab_size, self.block_size = vocab_size, block_size
        self.end_of_text = document_opening_id(mask_documents, end_of_text, vocab_size)
        with _quiet_and_offline() as transformers:
            built = _config(transformers, config, vocab_size, block_size, end_of_text)
            try:
                self.model = transformers.AutoModelForCausalLM.from_config(built, attn_implementation=attention)
            except Exception as error:  # each class has checks and errors of its own
                reason = _one_line(error).partition(". ")[0]
                raise ValueError(f"model.config.model_type={built.model_type}: {reason}") from error
        if recompute == "layer":
            if not self.model.supports_gradient_checkpointing:
                raise ValueError(f"model.recompute=layer: not possible for model_type={built.model_type}; use none")
            enable = getattr(self.model, "activation_checkpointing_enable", self.model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        self.recompute = recompute
        self.adds_auxiliary_loss = bool(getattr(built, "output_router_logits", False))
        head: Any = self.model.get_output_embeddings()
        if head is None:
            raise ValueError(f"model.config.model_type={built.model_type}: has no output layer; use another type")
        self.plain_head = (
            isinstance(head, nn.Linear)
            and getattr(head, "bias", None) is None
            and not self.adds_auxiliary_loss
            and all(getattr(built, name, None) in (None, 1) for name in CHANGED_LOGITS)
        )
        if _has_numbers(head.weight):
            try:
                self._try()
            except ValueError:
                raise
            except Exception as error:
                raise ValueError(
                    f"model.config: {built.model_type} cannot compute with it: {_one_line(error)}"
                ) from error

    @torch.no_grad()
    def _try(self) -> None:
        """Compute sequences of a few tokens, to see that no token sees later ones or those of other documents.

        Also see how the logits come about.

        Raises:
            ValueError: a token sees what it must not see.
        """
        training, model_type = self.training, self.model.config.model_type
        self.eval()
        tokens = torch.arange(min(6, self.block_size)).remainder(self.vocab_size)[None]
        other = tokens.clone()
        other[0, -1] = (other[0, -1] + 1) % self.vocab_size
        if not _close(*(self.model(each, use_cache=False).logits[:, :-1] for each in (tokens, other))):
            raise ValueError(
                f"model.config.model_type={model_type}: its tokens see later ones, so it cannot be trained to predict "
                "them; if its config has is_decoder, try +model.config.is_decoder=true"
            )
        if self.end_of_text is not None and tokens.shape[1] > 3:
            tokens = tokens.masked_fill(tokens == self.end_of_text, (self.end_of_text + 1) % self.vocab_size)
            tokens[0, 3] = self.end_of_text
            other = tokens.clone()
            other[0, :3] = tokens[0, :3].flip(0)
            try:
                masked = _close(self(tokens)[0][0, 3:], self(other)[0][0, 3:])
            except TypeError:  # it knows no positions
                masked = False
            if not masked:
                raise ValueError(
                    f"model.mask_documents=true: model_type={model_type} does not keep attention inside documents; use "
                    "model.mask_documents=false"
                )
        if self.plain_head:
            weight = self.model.get_output_embeddings().weight
            logits, hidden = self.model(tokens, **self._given(tokens)).logits, self._hidden(tokens)
            self.plain_head = _close(logits, F.linear(hidden, weight))
        self.train(training)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Return the logits (B, T, V) for token ids (B, T) and None; or, given targets (B, T), None and the mean loss.

        The loss is in nats; targets of -100 do not count. If the config has `output_router_logits`, a mixture of
        experts adds its loss for balance to the gradient, and not to the loss that is returned.
        """
        if tokens.shape[1] > self.block_size:
            raise ValueError(f"{tokens.shape[1]} tokens are more than model.block_size={self.block_size}")
        if targets is not None and self.plain_head:
            weight = self.model.get_output_embeddings().weight
            return None, linear_cross_entropy(self._hidden(tokens).flatten(0, 1), weight, targets.flatten())
        out = self.model(tokens, **self._given(tokens))
        if targets is None:
            return out.logits, None
        loss = F.cross_entropy(out.logits.flatten(0, 1).float(), targets.flatten())
        if self.adds_auxiliary_loss and self.training:
            auxiliary = self.model.config.router_aux_loss_coef * out.aux_loss
            loss = loss + (auxiliary - auxiliary.detach())
        return None, loss

    def _hidden(self, tokens: Tensor) -> Tensor:
        """Return what the output layer multiplies (B, T, C)."""
        hidden: Tensor = self.model.base_model(tokens, **self._given(tokens))[0]
        return hidden

    def _given(self, tokens: Tensor) -> dict[str, Any]:
        """Return what the model gets beside the tokens. It masks documents where positions do not go up by one."""
        if self.end_of_text is None:
            return {"use_cache": False}
        return {"use_cache": False, "position_ids": starts_and_positions(tokens, self.end_of_text)[1]}

    def flops_per_token(self, block_size: int) -> int:
        """Return the FLOPs of forward and backward per token, for matrix products only and attention without a mask.

        A mixture of experts counts the experts that a token uses.
        """
        head: int = self.model.get_output_embeddings().weight.numel()
        return 3 * (2 * head + self._layer_flops(block_size))

    def recomputed_flops_per_token(self, block_size: int) -> int:
        """Return the FLOPs per token that `recompute` adds to the backward."""
        return self._layer_flops(block_size) if self.recompute == "layer" else 0

    def _layer_flops(self, block_size: int) -> int:
        """Return the FLOPs per token of the forward of all layers."""
        config = self.model.config
        embeddings = {id(each.weight) for each in self.model.modules() if isinstance(each, nn.Embedding)}
        embeddings.add(id(self.model.get_output_embeddings().weight))
        flops = 0.0
        for name, param in self.model.named_parameters():
            if param.ndim >= 2 and id(param) not in embeddings:
                flops += 2 * param.numel() * (_active_share(config) if ".experts." in name else 1.0)
        if heads := getattr(config, "num_attention_heads", None):
            d_head = getattr(config, "head_dim", None) or config.hidden_size // heads
            flops += 4 * config.num_hidden_layers * heads * d_head * block_size
        return int(flops)


def _close(one: Tensor, other: Tensor) -> bool:
    """Return whether two results are the same up to rounding in float32."""
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def _one_line(error: Exception) -> str:
    """Return the message of an error in one line, or the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _has_numbers(weight: Any) -> bool:
    """Return whether a tensor has memory: `plan` builds the model without."""
    kind: Any = type(weight.detach())
    return kind is Tensor and not weight.is_meta


def _active_share(config: Any) -> float:
    """Return the share of the experts that a token uses."""
    count = next((found for name in ("num_local_experts", "num_experts", "n_routed_experts")
                  if (found := getattr(config, name, None))), 1)  # fmt: skip
    return float(getattr(config, "num_experts_per_tok", count)) / float(count)


@contextlib.contextmanager
def _quiet_and_offline() -> Iterator[Any]:
    """Give the package transformers, without its advice and without network access."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        try:
            import transformers
        except ImportError as error:
            raise ValueError(f"model=transformers: needs the package transformers; {INSTALL}") from error
        logging: Any = transformers.logging
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            yield transformers
        finally:
            logging.set_verbosity(verbosity)
    finally:
        os.environ.pop("HF_HUB_OFFLINE") if before is None else os.environ.update(HF_HUB_OFFLINE=before)


def _config(
    transformers: Any, fields: Mapping[str, Any], vocab_size: int, block_size: int, end_of_text: int | None
) -> Any:
    """Return the config of transformers; raise ValueError for a model or field that it does not have."""
    given = {name: value for name, value in fields.items() if value is not None}
    model_type = given.pop("model_type", None)
    classes = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if model_type not in classes:
        near = difflib.get_close_matches(str(model_type), classes, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "such as llama, qwen3, gemma2, gpt2, mixtral"
        raise ValueError(f"model.config.model_type={model_type}: transformers has no such causal model; {hint}")
    default = transformers.AutoConfig.for_model(model_type)
    module: Any = sys.modules[getattr(transformers, classes[model_type]).__module__]
    read = CONFIG_FIELD.findall(inspect.getsource(module))  # a config class does not know all of them
    known = {*default.to_dict(), *default.attribute_map, *read}
    for name in given:
        if name in OURS or name.startswith("_"):
            instead = OURS.get(name)
            way_out = f"give {instead} instead" if instead else "leave it out"
            raise ValueError(f"model.config.{name}: is set by lmtrain; {way_out}")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(
                f"model.config.{name}: {model_type} has no such field; {hint}model.config.{name}=null leaves it out"
            )
    ours = {
        "vocab_size": vocab_size,
        "max_position_embeddings": block_size,
        "eos_token_id": end_of_text,
        "bos_token_id": end_of_text,
        "pad_token_id": None,
        "use_cache": False,
    }
    allowed = {name: value for name, value in ours.items() if name in known}
    try:
        return transformers.AutoConfig.for_model(model_type, **{**allowed, **given})
    except Exception as error:  # each config class has checks and errors of its own
        raise ValueError(f"model.config: {model_type} refuses it: {_one_line(error)}") from error
