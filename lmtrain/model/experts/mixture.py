"""A mixture of experts in the place of an MLP: each token is computed by the few experts that a router picks for it.

No token is ever dropped: tokens are sorted by expert, and an expert computes as many as there are.

Shapes: B batch, T time, C d_model, N tokens (B · T), E experts, K experts of a token, D width of an expert.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from lmtrain.hardware.processes import sum_over_processes
from lmtrain.model.experts.dropless import Experts
from lmtrain.model.llama import SwiGLU

RouterKind = Literal["softmax", "sigmoid"]


class Routing(NamedTuple):
    """What the router did with a batch.

    Attributes:
        load: (E,) int64, the number of tokens of each expert.
        loss: The weighted sum of the router's losses, whose gradient is added to that of the model's loss.
    """

    load: Tensor
    loss: Tensor


class MixtureOfExperts(nn.Module):
    """Adds up the outputs of the SwiGLU experts that a router picks for a token, and of those that compute every token.

    Three things keep the experts equally busy. `balance_loss` and `router_z_loss` act on the gradient only. `bias_rate`
    does without a loss: it changes which experts are picked, but not their weights.

    Source: Shazeer et al. (2017); Dai et al., "DeepSeekMoE" (2024), for shared experts.

    Args:
        d_model: Width of the residual stream.
        d_ff: Width of the hidden layer of a dense MLP, from which the width of the experts follows.
        n_expert: Experts from which the router picks.
        n_active: Experts that it picks for each token.
        n_shared: Experts that compute every token.
        d_expert: Width of the hidden layer of an expert. Null means `d_ff / (n_active + n_shared)`, so that a token
            takes as many FLOPs as in a dense MLP.
        router: The score of an expert: `softmax` over the experts (Mixtral), or `sigmoid` of each (DeepSeek-V3).
        normalise: Divide the weights of a token's experts by their sum.
        balance_loss: Weight of the loss that is smallest if all experts are equally busy (Fedus et al., "Switch
            Transformers" (2021), eq. 4; divided by `n_active`, as in DeepSeek-V2).
        router_z_loss: Weight of the loss that keeps the router's logits small (Zoph et al., "ST-MoE" (2022), eq. 5).
        bias_rate: By how much the bias of an expert rises or falls after each step if it was less or more busy than the
            mean (Wang et al., "Auxiliary-Loss-Free Load Balancing" (2024)).

    Raises:
        ValueError: there are fewer experts than a token needs, the widths do not divide, or the weight of a token's
            only expert would always be 1.
    """

    def __init__(
        self,
        d_model: PositiveInt,
        d_ff: PositiveInt,
        /,
        n_expert: PositiveInt,
        n_active: PositiveInt,
        n_shared: NonNegativeInt = 0,
        d_expert: PositiveInt | None = None,
        router: RouterKind = "softmax",
        normalise: bool = True,
        balance_loss: NonNegativeFloat = 0.01,
        router_z_loss: NonNegativeFloat = 0.001,
        bias_rate: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__()
        if n_active > n_expert:
            raise ValueError(
                f"model.mlp.n_active={n_active}: a token cannot have more than n_expert={n_expert} experts"
            )
        if n_active == 1 and normalise:
            raise ValueError(
                "model.mlp.n_active=1: the weight of a token's only expert would always be 1, and the router would not "
                "learn from the loss; set model.mlp.normalise=false"
            )
        if d_expert is None and d_ff % (n_active + n_shared):
            raise ValueError(
                f"model.d_ff={d_ff}: cannot be divided among {n_active} active and {n_shared} shared experts; "
                "set model.mlp.d_expert"
            )
        d_expert = d_expert or d_ff // (n_active + n_shared)
        self.n_active, self.router_kind, self.normalise = n_active, router, normalise
        self.balance_loss, self.router_z_loss, self.bias_rate = balance_loss, router_z_loss, bias_rate
        self.router = nn.Linear(d_model, n_expert, bias=False)
        self.shared = SwiGLU(d_model, n_shared * d_expert) if n_shared else None
        self.experts = Experts(d_model, d_expert, n_expert, n_active)
        self.register_buffer("bias", torch.zeros(n_expert))
        self.register_buffer("load", torch.zeros(n_expert, dtype=torch.int64), persistent=False)  # of this step so far
        self.register_buffer("imbalance", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """Return the output (B, T, C) for (B, T, C), and what the router did."""
        flat = x.flatten(0, -2)  # (N, C)
        logits = self._logits(flat)  # (N, E)
        scores = logits.softmax(-1) if self.router_kind == "softmax" else logits.sigmoid()
        picked = (scores.detach() + self.bias).topk(self.n_active, dim=-1).indices  # (N, K)
        weights = scores.gather(1, picked)  # (N, K)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        shared = None if self.shared is None else self.shared(flat)
        out, load = self.experts(flat, picked, weights)
        if shared is not None:
            out = out + shared
        return out.view(x.shape), Routing(load, self._loss(logits, scores, load))

    def _logits(self, x: Tensor) -> Tensor:
        """Return the router's logits in at least float32, since small differences between them decide."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(dtype), self.router.weight.to(dtype))

    def _loss(self, logits: Tensor, scores: Tensor, load: Tensor) -> Tensor:
        loss = logits.new_zeros(())
        if self.balance_loss:
            loss = loss + self.balance_loss * balance_loss(scores, load)
        if self.router_z_loss:
            loss = loss + self.router_z_loss * router_z_loss(logits)
        return loss

    def count(self, load: Tensor) -> None:
        """Count the tokens of a micro-batch for `after_update`."""
        self.load += load

    def after_update(self, skipped: Tensor) -> None:
        """Move the biases according to the load of the whole step, unless its update was skipped (a bool tensor)."""
        sum_over_processes(self.load)
        busier = torch.sign(self.load * len(self.load) - self.load.sum())  # than the mean; integers are exact
        self.bias -= self.bias_rate * torch.where(skipped, 0, busier).to(self.bias.dtype)
        self.imbalance.copy_(self.load.max() / self.load.sum() * len(self.load))
        self.load.zero_()

    def metrics(self) -> dict[str, Tensor]:
        """Return the load of the busiest expert in the last step, divided by the mean load: 1 if all are balanced."""
        return {"moe/imbalance": self.imbalance}

    bias: Tensor
    load: Tensor
    imbalance: Tensor


def balance_loss(scores: Tensor, load: Tensor) -> Tensor:
    """Return E times the sum over experts of its share of the load times its mean share of the scores; 1 if balanced.

    Args:
        scores: (N, E), the router's scores.
        load: (E,), the number of tokens of each expert.
    """
    shares = load.to(scores.dtype) / load.sum()
    mean_scores = (scores / scores.sum(-1, keepdim=True)).mean(0)  # (E,)
    return len(load) * torch.dot(shares, mean_scores)


def router_z_loss(logits: Tensor) -> Tensor:
    """Return the mean square of the logarithm of the softmax's normaliser, given logits (N, E)."""
    return logits.logsumexp(-1).square().mean()


def with_routers(loss: Tensor, mlps: Iterable[nn.Module], routings: Iterable[Routing | None]) -> Tensor:
    """Count the load of each mixture of experts, and return the loss with the gradients of their routers' losses.

    This is not done in `forward`, which runs a second time if a layer is computed again in the backward.
    """
    if not torch.is_grad_enabled():
        return loss
    for mlp, routing in zip(mlps, routings, strict=True):
        if isinstance(mlp, MixtureOfExperts) and routing is not None:
            mlp.count(routing.load)
            loss = add_gradient(loss, routing.loss)
    return loss


def add_gradient(loss: Tensor, other: Tensor) -> Tensor:
    """Return the loss, whose gradient is that of the sum of both."""
    return loss + (other - other.detach()).to(loss.dtype)
