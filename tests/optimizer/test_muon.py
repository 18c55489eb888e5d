"""Muon and NorMuon match their papers in float64, and torch's Muon; only hidden matrices are theirs."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lmtrain.model.gpt2 import GPT2
from lmtrain.model.llama import Llama
from lmtrain.optimizer.muon import COEFFICIENTS, RMS_OF_ADAMW, muon, normuon, orthogonal

ADAMW = {"betas": (0.9, 0.95), "eps": 1e-8, "adamw_lr_scale": 1.0}
MUON: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "nesterov": True, "iterations": 5, **ADAMW}
SHAPES = {"layers.0.wide": (3, 7), "layers.0.tall": (8, 4), "layers.0.wide_too": (3, 7), "experts": (2, 5, 4)}


def matrices(dtype: torch.dtype = torch.float64) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for name, shape in SHAPES.items()
    }


def set_gradients(named: dict[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for param in named.values():
        param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(param.dtype)


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    a, b, c = COEFFICIENTS
    x = matrix / (np.linalg.norm(matrix) + 1e-7)
    if x.shape[0] > x.shape[1]:
        return newton_schulz(matrix.T).T
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("scale", ["match_adamw", "spectral"])
def test_ten_steps_of_muon_match_the_paper(nesterov, scale):
    named = matrices()
    optimizer = muon(named.items(), **{**MUON, "nesterov": nesterov}, scale=scale, precision="auto")
    theta = {name: param.detach().numpy().copy() for name, param in named.items()}
    m = {name: np.zeros_like(value) for name, value in theta.items()}
    for t in range(1, 11):
        lr = 0.02 * t / 10
        for group in optimizer.param_groups:
            group["lr"] = lr
        set_gradients(named, t)
        optimizer.step()
        for name in theta:
            g = named[name].grad.numpy()
            m[name] = 0.95 * m[name] + 0.05 * g
            direction = 0.95 * m[name] + 0.05 * g if nesterov else m[name]
            pieces = direction if direction.ndim == 3 else direction[None]
            update = np.stack([newton_schulz(piece) for piece in pieces]).reshape(direction.shape)
            rows, columns = update.shape[-2:]
            factor = 0.2 * max(rows, columns) ** 0.5 if scale == "match_adamw" else max(1, rows / columns) ** 0.5
            theta[name] = theta[name] * (1 - lr * 0.1) - lr * factor * update
            np.testing.assert_allclose(named[name].detach().numpy(), theta[name], rtol=1e-10, atol=1e-12)


def test_ten_steps_of_normuon_match_the_paper():
    named = matrices()
    optimizer = normuon(named.items(), **MUON, precision="auto", row_beta=0.9)
    theta = {name: param.detach().numpy().copy() for name, param in named.items()}
    m = {name: np.zeros_like(value) for name, value in theta.items()}
    v = {name: np.zeros((*value.shape[:-1], 1)) for name, value in theta.items()}
    for t in range(1, 11):
        lr = 0.02 * t / 10
        for group in optimizer.param_groups:
            group["lr"] = lr
        set_gradients(named, t)
        optimizer.step()
        for name in theta:
            g = named[name].grad.numpy()
            m[name] = 0.95 * m[name] + 0.05 * g
            direction = 0.95 * m[name] + 0.05 * g
            pieces = direction if direction.ndim == 3 else direction[None]
            update = np.stack([newton_schulz(piece) for piece in pieces]).reshape(direction.shape)
            v[name] = 0.9 * v[name] + 0.1 * (update**2).mean(-1, keepdims=True)
            update = update / (np.sqrt(v[name]) + 1e-8)
            size = np.linalg.norm(update, axis=(-2, -1), keepdims=True)
            step = 0.2 * lr * np.sqrt(np.prod(update.shape[-2:])) / size
            theta[name] = theta[name] * (1 - lr * 0.1) - step * update
            # Both add a tiny number to a norm, one before and one after the square root of its size.
            np.testing.assert_allclose(named[name].detach().numpy(), theta[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("scale", ["match_adamw", "spectral"])
def test_muon_is_that_of_torch(scale):
    """Both compute the iterations in bfloat16, so the updates agree to its rounding."""
    named, theirs = ({k: p for k, p in matrices(torch.float32).items() if p.ndim == 2} for _ in range(2))
    ours = muon(named.items(), **MUON, scale=scale, precision="bfloat16")
    name = "match_rms_adamw" if scale == "match_adamw" else "original"
    reference = torch.optim.Muon(theirs.values(), lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn=name)
    for t in range(1, 6):
        for optimizer, params in ((ours, named), (reference, theirs)):
            before = {key: param.detach().clone() for key, param in params.items()}
            set_gradients(params, t)
            optimizer.step()
            if params is named:
                moved = {key: param.detach() - before[key] for key, param in params.items()}
        for key, param in theirs.items():
            expected = param.detach() - before[key]
            assert (moved[key] - expected).norm() < 0.03 * expected.norm()


def test_the_singular_values_become_about_equal():
    matrix = torch.randn(40, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for each in (matrix, matrix.T):
        values = torch.linalg.svdvals(orthogonal(each, 5, torch.float64))
        assert 0.65 < values.min() <= values.max() < 1.3
        u, _, v = torch.linalg.svd(each, full_matrices=False)
        assert (orthogonal(each, 5, torch.float64) * (u @ v)).sum() / 40 > 0.8  # the same directions


def test_every_update_is_as_large_as_those_of_adamw():
    named = matrices()
    before = {name: param.detach().clone() for name, param in named.items()}
    optimizer = normuon(named.items(), **{**MUON, "weight_decay": 0.0}, precision="auto", row_beta=0.9)
    set_gradients(named, 1)
    optimizer.step()
    for name, param in named.items():
        moved = (param.detach() - before[name]).square().mean((-2, -1)).sqrt()
        np.testing.assert_allclose(moved, RMS_OF_ADAMW * 0.02, rtol=1e-5)


def test_only_hidden_matrices_of_the_shipped_models_get_muon():
    sizes = {"vocab_size": 11, "block_size": 8, "n_layer": 1, "n_head": 2, "d_model": 8, "d_ff": 16}
    for model in (Llama(**sizes, n_kv_head=1, tie_embeddings=False), GPT2(**sizes)):
        optimizer = muon(list(model.named_parameters()), **MUON, scale="match_adamw", precision="auto")
        names = {id(param): name for name, param in model.named_parameters()}
        theirs = {
            group["algorithm"]: {names[id(param)] for param in group["params"]}
            for group in optimizer.param_groups
            if group["algorithm"] == "muon"
        }["muon"]
        assert theirs == {
            name for name, param in model.named_parameters() if name.startswith("layers.") and param.ndim == 2
        }
