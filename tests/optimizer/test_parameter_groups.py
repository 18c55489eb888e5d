"""Parameter groups contain the right parameters, and their sizes are logged."""

import logging
from pathlib import Path

import torch
from omegaconf import OmegaConf
from support.parameters import parameters

from lmtrain.model.llama import Llama
from lmtrain.optimizer.adamw import adamw
from lmtrain.optimizer.parameter_groups import parameter_groups


def test_a_frozen_parameter_is_in_no_group(caplog):
    named = parameters(seed=3)
    named["cube"].requires_grad_(False)
    with caplog.at_level(logging.INFO, logger="lmtrain.optimizer.parameter_groups"):
        groups = parameter_groups(named.items(), weight_decay=0.1)
    held = {id(param) for group in groups for param in group["params"]}
    assert held == {id(param) for name, param in named.items() if name != "cube"}
    assert caplog.messages == [
        "2 tensors (48 params; embedding, hidden), weight decay 0.1",
        "3 tensors (10 params; vector), no weight decay",
    ]


def test_a_model_with_only_matrices_has_one_group():
    named = {name: param for name, param in parameters(seed=4).items() if param.ndim >= 2}
    assert [len(group["params"]) for group in parameter_groups(named.items(), weight_decay=0.1)] == [3]


def test_the_sizes_of_the_production_model_are_logged(caplog):
    folder = Path(__file__).parents[2] / "conf"
    config = OmegaConf.load(folder / "model/llama_50m.yaml")
    config.update(block_size=512)
    hyper = OmegaConf.to_container(OmegaConf.load(folder / "optimizer/adamw.yaml"))
    assert (config.pop("_target_"), hyper.pop("_target_")) == (
        "lmtrain.model.llama.Llama",
        "lmtrain.optimizer.adamw.adamw",
    )
    with torch.device("meta"):
        model = Llama(**config)
    with caplog.at_level(logging.INFO, logger="lmtrain.optimizer.parameter_groups"):
        optimizer = adamw(model.named_parameters(), **hyper)
    assert caplog.messages == [
        "113 tensors (50,036,736 params; embedding, hidden), weight decay 0.1",
        "33 tensors (12,672 params; vector), no weight decay",
    ]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
