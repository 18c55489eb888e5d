"""Tests of hashing a user's own code: which files are covered, and that a resume names those that have changed."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from support.command_line import Cli
from support.tokens import TINY
from support.user_model import write_my_model

from lmtrain.run import source_code
from lmtrain.run.environment import describe_environment, hardware_and_software
from lmtrain.run.source_code import changed_sources, lmtrain_hash, source_hashes

CONFIG = {
    "model": {"_target_": "net.model.Model", "parts": [{"_target_": "other.Part"}]},
    "optimizer": {"_target_": "torch.optim.SGD"},
    "scheduler": {"_target_": "lmtrain.scheduler.cosine"},
}
FILES = {
    "net/__init__.py": "",
    "net/model.py": "import json\nimport torch.nn\nfrom . import blocks\nfrom .deep.layers import Layer\n",
    "net/blocks.py": "from ..outside import x\n",  # outside the package, so it can't be imported
    "net/deep/__init__.py": "from net.unused_name import nothing\n",
    "net/deep/layers.py": "def later():\n    import helper\n",
    "net/unused.py": "",
    "other.py": "import helper, net.model\n",
    "helper.py": "this is no Python",
    "spaces/inner/module.py": "",
}


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_target_depends_on_its_module_its_packages_and_everything_they_import(code: Path) -> None:
    found = source_hashes(CONFIG)
    net = ["net", "net.blocks", "net.deep", "net.deep.layers", "net.model"]
    assert {key: [*hashes] for key, hashes in found.items()} == {
        "model._target_": ["helper", *net],
        "model.parts.0._target_": ["helper", *net, "other"],
    }
    assert source_hashes({"model": {"_target_": "spaces.inner.module.Thing"}})["model._target_"].keys() == {
        "spaces.inner.module"
    }


def test_the_nearest_of_too_many_modules_are_covered(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_code, "MAX_MODULES", 4)
    found = source_hashes(CONFIG)
    assert [*found["model._target_"]] == ["net", "net.blocks", "net.deep", "net.model"]
    assert [*found["model.parts.0._target_"]] == ["helper", "net", "net.model", "other"]


def test_only_files_that_existed_both_times_and_differ_have_changed(code: Path) -> None:
    before = source_hashes(CONFIG)
    (code / "net" / "unused.py").write_text("a = 1")
    (code / "net" / "model.py").write_text("from . import blocks, new\n")
    (code / "net" / "new.py").write_text("")
    changed = changed_sources(before, source_hashes(CONFIG))
    model = str(code / "net" / "model.py")
    assert changed == {"model._target_": [model], "model.parts.0._target_": [model]}
    assert changed_sources({}, before) == changed_sources(before, before) == {}


def test_the_hash_of_lmtrain_changes_with_any_file_that_trains(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lmtrain_hash() == lmtrain_hash()
    monkeypatch.setattr(source_code, "LMTRAIN", code)
    seen = {lmtrain_hash()}
    (code / "net" / "unused.py").write_text("a = 1")
    seen.add(lmtrain_hash())
    (code / "other.py").rename(code / "another.py")
    seen.add(lmtrain_hash())
    assert len(seen) == 3
    (code / "comparison").mkdir()
    (code / "comparison" / "tables.py").write_text("a = 1")
    assert lmtrain_hash() in seen


def test_training_uses_none_of_the_folders_that_its_hash_leaves_out() -> None:
    names = {path.stem if path.is_file() else path.name for path in source_code.LMTRAIN.iterdir()}
    assert {Path(name).stem for name in source_code.NOT_TRAINING} <= names
    used = (
        "import sys, lmtrain.train_run; "
        "print(*{name.split('.')[1] for name in sys.modules if name.startswith('lmtrain.')})"
    )
    loaded = subprocess.check_output([sys.executable, "-c", used], text=True).split()
    assert "trainer" in loaded
    assert {*loaded} & source_code.NOT_TRAINING == set()


def test_the_environment_has_the_code_and_the_package_versions_of_targets(code: Path) -> None:
    config = {**CONFIG, "logger": {"mine": {"_target_": "rich.table.Table"}}}
    recorded = describe_environment("x", "cpu", config)
    assert recorded["code"] == source_hashes(CONFIG)
    assert recorded["packages"]["rich"] == version("rich")
    assert not {"net", "other"} & recorded["packages"].keys()
    assert hardware_and_software(recorded)["lmtrain_source"] == lmtrain_hash()


@pytest.mark.slow
def test_a_resume_with_changed_code_is_refused_until_it_is_allowed(
    token_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    write_my_model(tmp_path)
    model = tmp_path / "mymodels.py"
    model.write_text(f"import scales\n{model.read_text()}")
    (tmp_path / "scales.py").write_text("SCALE = 1\n")
    kept = [text for text in TINY if not text.startswith("model")]
    run = [*kept, f"data.path={token_folder}", "model=mine", "hydra.run.dir=out", "trainer.max_steps=2"]
    assert cli(*run).returncode == 0
    more = ["resume=out", "trainer.max_steps=3"]
    (tmp_path / "scales.py").write_text("SCALE = 2\n")
    done = cli(*more)
    assert done.returncode == 2
    assert (
        "resume=out: would change the run (model._target_: scales.py changed since step 2); start a new run, "
        "or allow the change: python -m lmtrain resume=out trainer.max_steps=3 'allow_changes=[model._target_]'"
    ) in done.stderr
    done = cli(*more, "allow_changes=[model]")
    assert done.returncode == 0, done.stderr
    assert "changed: model._target_: scales.py changed since step 2" in done.stdout
    environment = json.loads((tmp_path / "out" / "environment.json").read_text())
    assert environment["resumes"][0]["code"] != environment["code"]
    assert cli("resume=out", "trainer.max_steps=4").returncode == 0
