"""Seeds random generators, and saves and restores their state."""

import hashlib
import random
from typing import Any, cast

import numpy as np
import torch


def seed_generators(seed: int) -> None:
    """Seed every random generator that a model or a user's part may use."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_of_rank(seed: int, rank: int, step: int = 0) -> int:
    """Return the seed of the generators in a process of several, from a step on; in the first it is the run's own."""
    digest = hashlib.blake2b(repr((seed, rank, step)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1 if rank else seed


def generator_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of all random generators as tensors, which can be saved without pickle."""
    version, words, gauss = random.getstate()
    _, key, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    state = {
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([gauss is not None, gauss or 0.0], dtype=torch.float64),
        "numpy": torch.tensor([*key.tolist(), position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def load_generator_state(device: torch.device, state: dict[str, torch.Tensor]) -> None:
    """Restore a state that `generator_state` returned.

    After a move from CPU to CUDA the state has nothing for the CUDA generator, which then keeps its seed.
    """
    version, *words = state["python"].tolist()
    # Earlier versions saved the number alone, or nothing.
    *has_gauss, gauss = state["python_gauss"].tolist() or [0.0, 0.0]
    random.setstate((version, tuple(words), gauss if has_gauss in ([], [1.0]) else None))
    *key, position, has_gauss = state["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(key, np.uint32), position, has_gauss, state["numpy_gauss"].item()))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
