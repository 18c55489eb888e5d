"""Parameter groups contain the right parameters."""

from support.parameters import parameters

from lmtrain.optimizer.parameter_groups import parameter_groups


def test_a_frozen_parameter_is_in_no_group():
    named = parameters(seed=3)
    named["cube"].requires_grad_(False)
    groups = parameter_groups(named.items(), weight_decay=0.1)
    held = {id(param) for group in groups for param in group["params"]}
    assert held == {id(param) for name, param in named.items() if name != "cube"}


def test_a_model_with_only_matrices_has_one_group():
    named = {name: param for name, param in parameters(seed=4).items() if param.ndim >= 2}
    assert [len(group["params"]) for group in parameter_groups(named.items(), weight_decay=0.1)] == [3]


def test_without_weight_decay_there_are_as_many_groups():
    """A value that a resume may change does not change which groups there are."""
    for weight_decay in (0.1, 0.0):
        groups = parameter_groups(parameters(seed=5).items(), weight_decay)
        assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(3, weight_decay), (3, 0.0)]
