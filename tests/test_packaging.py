"""Tests of the built wheel, of the constraints, and of what the README promises about them."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.command_line import clean_environment
from support.tokens import TINY
from support.user_model import write_my_model

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_users_own_model_trains_from_an_installed_wheel(token_folder: Path, tmp_path: Path) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    command = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(ROOT)]
    subprocess.run([sys.executable, "-m", *command], check=True, timeout=120)
    (wheel,) = wheels.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    assert (site / "lmtrain" / "conf" / "config.yaml").is_file()
    assert (site / "lmtrain" / "experiments" / "quickstart.yaml").is_file()
    assert (site / "lmtrain" / "comparison" / "output" / "web" / "page.html").is_file()
    assert_a_users_script_is_typed(site, tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    write_my_model(work)
    # Like the installed script, this runs without the current folder on the path.
    script = "import sys; sys.path.remove(''); import lmtrain.__main__ as m; print(m.__file__); m.main()"
    mine = [text for text in TINY if not text.startswith("model")]
    for override, code in (("model.scale=2", 0), ("+model.scael=2", 2)):
        done = subprocess.run(
            [sys.executable, "-c", script, *mine, "model=mine", f"data.path={token_folder}", override],
            cwd=work,
            env=clean_environment() | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert done.stdout.startswith(str(site))
    assert "model.scael=2: unknown key; did you mean model.scale?" in done.stderr


USERS_SCRIPT = """\
from pathlib import Path
from typing import assert_type
import lmtrain
from lmtrain import LoadedModel, Run, compose, load_run, read_metrics, train

assert_type(train({"optimizer.lr": 1e-3}, resume=Path("out")), Run)
assert_type(load_run("out").load(device="cpu"), LoadedModel)
assert_type(load_run("out").load().evaluate().bits_per_byte, float | None)
assert_type(read_metrics("out"), list[dict[str, float]])
print(compose(["seed=1"]).seed, lmtrain.__version__)
train(seed=1)
lmtrain.trian
"""


def assert_a_users_script_is_typed(site: Path, folder: Path) -> None:
    assert (site / "lmtrain" / "py.typed").is_file()  # else no type checker reads the types of an installed package
    (folder / "script.py").write_text(USERS_SCRIPT)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--no-color-output", "script.py"]
    environment = clean_environment() | {"PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert [line for line in done.stdout.splitlines() if ": error:" in line] == [
        'script.py:11: error: Unexpected keyword argument "seed" for "train"  [call-arg]',
        'script.py:12: error: Module has no attribute "trian"; maybe "train"?  [attr-defined]',
    ]


def test_ci_runs_the_commands_of_the_readme() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    install = "pip install -c constraints.txt -e '.[dev]'"
    assert f"{install} && pytest" in readme
    assert len(readme.splitlines()) < 175, "a README is read in three minutes; the rest belongs into docs/"
    assert install.replace("install", "install --quiet", 1) in ci
    assert re.search(r"^pytest$", ci, re.MULTILINE)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
