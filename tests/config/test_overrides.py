"""Commands that take the config of one new run say so, with their own name and the true way out."""

import pytest

from lmtrain.commands import benchmark, prepare
from lmtrain.config.overrides import refuse_several_runs
from lmtrain.errors import ConfigError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m"], "-m: benchmark takes one config; give key=value overrides for it"),
        (["loops", "--multirun", "seed=1"], "--multirun: benchmark takes one config"),
        (["seed=1,2"], "seed=1,2: has several values, and benchmark takes one config; give one of them"),
        (["loader", "seed=range(3)"], "seed=range(3): has several values"),
        (["resume=outputs/a"], "resume=outputs/a: benchmark starts its own run; give the overrides that your run"),
        (["startup", "++resume=outputs/a"], "++resume=outputs/a: benchmark starts its own run"),
    ],
)
def test_a_benchmark_takes_one_new_run(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        benchmark.main(arguments)
    assert str(raised.value).startswith(message)


def test_data_is_prepared_for_one_config() -> None:
    with pytest.raises(ConfigError, match=r"^seed=1,2: has several values, and prepare takes one config"):
        prepare.main(["data=text", "seed=1,2"])


def test_one_new_run_is_not_refused() -> None:
    lists = ["logger=[csv,wandb]", "optimizer.betas=[0.9,0.95]", "name='a,b'", "~resume", "resume=null"]
    refuse_several_runs("benchmark", ["step", *lists, "--seconds", "3", "--json=a,b.json", "a=(b"])
