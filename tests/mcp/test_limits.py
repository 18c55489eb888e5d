"""Tests that an agent stays inside its folder."""

from pathlib import Path

import pytest

from lmtrain.errors import ConfigError
from lmtrain.mcp.limits import check_overrides, check_paths, check_runs


def test_ordinary_overrides_pass(tmp_path: Path) -> None:
    overrides = [
        "experiments=tiny",
        "optimizer.lr=3e-3",
        "+x.y=1",
        "~sample_tokens",
        "data.path=data/own",
        "seed=1,2,3",
    ]
    overrides += ["hydra.sweep.dir=outputs/rates", "hydra.sweeper.n_trials=20", "hydra/sweeper=optuna", "a.b=${c.d}"]
    assert check_overrides(overrides, tmp_path) == overrides


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("--config-dir=/etc", "is not an override"),
        ("-m", "is not an override"),
        ("prepare", "is not an override"),
        ("+model._target_=os.system", "code is chosen by the YAML files"),
        ("model={_target_: os.system}", "code is chosen by the YAML files"),
        ("hydra/launcher=submitit_slurm", "of Hydra's settings, only"),
        ("hydra.searchpath=[file:///tmp]", "of Hydra's settings, only"),
        ("hydra/launcher@hydra.launcher=joblib", "of Hydra's settings, only"),
        ("hydra=${model}", "of Hydra's settings, only"),
        ("+model@hydra.launcher=gpt2", "of Hydra's settings, only"),
        ("trust=[own.Evil]", "a person decides which code is trusted"),
        ("++trust=own.Evil", "a person decides which code is trusted"),
        ("name=${oc.env:SECRET}", "an interpolation is allowed only alone"),
        ("name=${${a.b}.env:SECRET}", "an interpolation is allowed only alone"),
        ("data.path=${a.dot}${a.dot}", "an interpolation is allowed only alone"),
        ("data.path=file:///etc", "///etc is outside the folder"),
        ("data.path=/etc", "/etc is outside the folder"),
        ("data.path=../elsewhere", "../elsewhere is outside the folder"),
        ("data.path=a/../../b", "a/../../b is outside the folder"),
        ("prepare.source.files=[a.txt,~/secret.txt]", "~/secret.txt is outside the folder"),
        ("prepare.source.files='/etc/passwd'", "/etc/passwd is outside the folder"),
        ("hydra.run.dir=..", ".. is outside the folder"),
    ],
)
def test_what_leaves_the_folder_is_refused(override: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        check_overrides([override], tmp_path)
    assert override in str(refused.value)
    assert reason in str(refused.value)


def test_a_link_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "outside").mkdir()
    (inside / "link").symlink_to(tmp_path / "outside")
    for override in ("data.path=link", "data.path=link/below"):
        with pytest.raises(ConfigError, match="outside the folder"):
            check_overrides([override], inside)
    with pytest.raises(ConfigError, match="outside the folder"):
        check_runs(["link"], inside)
    with pytest.raises(ConfigError, match="outside the folder"):
        check_paths("../outside", inside, "campaign")


def test_runs_are_named_relative_to_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outputs" / "a").mkdir(parents=True)
    assert check_runs(["outputs/a", str(tmp_path / "outputs")], tmp_path) == ["outputs/a", "outputs"]
    (tmp_path / "--json=x").mkdir()
    assert check_runs(["./--json=x"], tmp_path) == ["./--json=x"]
    with pytest.raises(ConfigError, match="missing: no such run or folder"):
        check_runs(["missing"], tmp_path)
    with pytest.raises(ConfigError, match="--help: is not a path"):
        check_runs(["--help"], tmp_path)
