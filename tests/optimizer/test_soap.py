"""SOAP matches algorithm 3 of its paper in float64."""

import numpy as np
import torch
from torch import nn

from lmtrain.optimizer.soap import soap

SETTINGS = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95), "shampoo_beta": 0.97, "eps": 1e-8}


def reference(theta, gradients, rates, frequency):
    """Return the weights after the steps of algorithm 3, whose first gradient only begins the two bases."""
    beta1, beta2 = SETTINGS["betas"]
    L, R = (np.zeros((size, size)) for size in theta.shape)
    M, V = np.zeros_like(theta), np.zeros_like(theta)
    QL = QR = None
    for t, (G, lr) in enumerate(zip(gradients, rates, strict=True)):
        if t:
            rotated = QL.T @ G @ QR
            M = beta1 * M + (1 - beta1) * G
            V = beta2 * V + (1 - beta2) * rotated**2
            size = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t)
            N = (QL.T @ M @ QR) / (np.sqrt(V) + SETTINGS["eps"])
            theta = theta - size * QL @ N @ QR.T
            theta = theta * (1 - lr * SETTINGS["weight_decay"])
        L = SETTINGS["shampoo_beta"] * L + (1 - SETTINGS["shampoo_beta"]) * G @ G.T
        R = SETTINGS["shampoo_beta"] * R + (1 - SETTINGS["shampoo_beta"]) * G.T @ G
        if t == 0:
            QL, QR = (np.linalg.eigh(matrix)[1][:, ::-1] for matrix in (L, R))
        elif t % frequency == 0:
            QL, order_left = power_step(L, QL)
            QR, order_right = power_step(R, QR)
            V = V[order_left][:, order_right]
    return theta


def power_step(matrix, basis):
    """Return the basis after a step of power iteration, and the order of the old one's eigenvalues (algorithm 4)."""
    order = np.argsort(-np.diag(basis.T @ matrix @ basis))
    return np.linalg.qr(matrix @ basis[:, order])[0], order


def test_steps_match_algorithm_3_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    # Square, so that the first gradient determines all eigenvectors.
    gradients = [torch.randn(5, 5, generator=generator, dtype=torch.float64) for _ in range(10)]
    weight = nn.Parameter(start.clone())
    optimizer = soap([("hidden.weight", weight)], precondition_frequency=3, max_precondition_dim=100, **SETTINGS)
    rates = [1e-2 * (step + 1) / 10 for step in range(10)]
    for gradient, lr in zip(gradients, rates, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = gradient.clone()
        optimizer.step()
    expected = reference(start.numpy(), [gradient.numpy() for gradient in gradients], rates, frequency=3)
    # The package computes new bases in float32, so that they have errors of about 1e-6, and 1e-2 of them in each step.
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=0, atol=1e-2 * 1e-5 * 10)
