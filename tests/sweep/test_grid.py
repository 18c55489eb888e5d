"""The jobs of a sweep have their overrides in the order of the command."""

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl

from lmtrain.sweep.grid import expand_grid


def jobs(*arguments: str) -> list[list[str]]:
    return expand_grid({}, arguments, ConfigLoaderImpl(ConfigSearchPathImpl())).jobs()


def test_a_fork_keeps_what_its_parent_was_started_with() -> None:
    parent, own = ["scheduler=wsd", "scheduler.decay_steps=0"], ["scheduler=wsd", "scheduler.decay_steps=4"]
    assert jobs(*parent, "++fork=run", "step=4,8", *own) == [
        [*parent, "++fork=run", f"step={step}", *own] for step in (4, 8)
    ]


def test_the_last_values_of_a_key_are_swept() -> None:
    assert jobs("seed=1,2", "name=a", "seed=3,4") == [["name=a", "seed=3"], ["name=a", "seed=4"]]
    assert jobs("seed=1", "seed=3,4") == [["seed=3"], ["seed=4"]]
    assert jobs("seed=1,2", "seed=3") == [["seed=3"]]
