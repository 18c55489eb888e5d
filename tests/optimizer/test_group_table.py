"""The table of parameter groups shows every optimizer's groups, and fits into a terminal."""

from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from support.parameters import parameters
from torch import nn

from lmtrain.config.build import build
from lmtrain.model.llama import Llama
from lmtrain.optimizer.adamw import adamw
from lmtrain.optimizer.group_table import GroupRow, group_rows, group_table

CONF = Path(__file__).parents[2] / "conf"
CHOICES = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))


@cache
def production_model() -> Llama:
    config = OmegaConf.load(CONF / "model/llama_50m.yaml")
    config.update(block_size=512)
    with torch.device("meta"):
        model: Llama = build(config)
    return model


def test_the_table_of_the_production_model():
    model = production_model()
    optimizer = build(OmegaConf.load(CONF / "optimizer/adamw.yaml"), list(model.named_parameters()))
    assert group_table(group_rows(optimizer, model.named_parameters())).splitlines() == [
        "algorithm  roles              tensors  parameters  lr ×  weight decay",
        "AdamW      embedding, hidden      113  50,036,736     1           0.1",
        "AdamW      vector                  33      12,672     1             0",
    ]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_fits_into_80_columns_and_shows_all_parameters(choice):
    if choice == "library":
        pytest.importorskip("pytorch_optimizer")
    model = production_model()
    optimizer = build(OmegaConf.load(CONF / f"optimizer/{choice}.yaml"), list(model.named_parameters()))
    rows = group_rows(optimizer, model.named_parameters())
    assert sum(row.parameters for row in rows) == 50_036_736 + 12_672
    assert sum(row.tensors for row in rows) == 113 + 33
    assert max(map(len, group_table(rows).splitlines())) <= 80 - len("  ")


def test_rules_and_frozen_parameters_are_shown():
    named = parameters(seed=3)
    named["cube"].requires_grad_(False)
    optimizer = adamw(
        named.items(),
        lr=1e-3,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        eps=1e-8,
        rules=[{"role": "embedding", "lr_scale": 0.25}, {"names": "bias", "weight_decay": 0.1}],
    )
    assert group_rows(optimizer, named.items()) == [
        GroupRow("AdamW", ("embedding",), 1, 28, 0.25, 0.1),
        GroupRow("AdamW", ("vector",), 2, 5, 1.0, 0.0),
        GroupRow("AdamW", ("vector", "hidden"), 2, 25, 1.0, 0.1),
        GroupRow("not updated", ("hidden",), 1, 24, None, None),
    ]
    assert group_table(group_rows(optimizer, named.items())).splitlines()[-1].split() == [
        "not", "updated", "hidden", "1", "24", "–", "–",
    ]  # fmt: skip


def test_an_optimizer_of_ones_own_with_plain_groups_is_shown():
    class Plain(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})

    named = parameters(seed=4)
    assert group_rows(Plain(named.values()), named.items()) == [GroupRow("Plain", ("all",), 6, 82, 1.0, None)]
    assert group_rows(Plain(list(named.items())), named.items()) == group_rows(Plain(named.values()), named.items())


def test_equal_groups_share_a_row_and_a_long_table_is_cut():
    layers = {f"layers.{number}.weight": nn.Parameter(torch.ones(2, 3)) for number in range(30)}
    alike = torch.optim.SGD([{"params": [param]} for param in layers.values()], lr=0.1)
    assert group_rows(alike, layers.items()) == [GroupRow("SGD", ("hidden",), 30, 180, 1.0, 0.0)]
    scaled = [{"params": [param], "lr_scale": 0.9**number} for number, param in enumerate(layers.values())]
    lines = group_table(group_rows(torch.optim.SGD(scaled, lr=0.1), layers.items())).splitlines()
    assert len(lines) == 14
    assert lines[-1] == "and 18 more groups with 18 tensors of 108 parameters"
