"""Tests that a hostile folder can't harm a user who reads it, and that a run stores no secrets."""

import ast
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from support.command_line import Cli
from support.tokens import TINY, write_failing_model, write_tokens
from tokenizers import Tokenizer, models

from lmtrain.__main__ import dispatch
from lmtrain.checkpoint.files import load_checkpoint
from lmtrain.checkpoint.fork import load_fork_origin
from lmtrain.data import stored_tokenizer, token_files
from lmtrain.data.meta import check_tokenizer, read_meta
from lmtrain.data.text import inputs
from lmtrain.data.writing import journal
from lmtrain.errors import BrokenCheckpointError, ConfigError, DataError
from lmtrain.files.limited import read_json
from lmtrain.run.environment import describe_environment

PACKAGE = Path(__file__).parent.parent / "lmtrain"
SMALL = [text for text in TINY if not text.startswith("trainer.max_steps")]
STEP = "step-00000004"
SECRET, ON_THE_COMMAND_LINE = "s3cr3t-value-of-the-environment", "s3cr3t-value-of-the-command"


class Payload:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.makedirs, (str(self.marker), 0o777, True)


def plant_pickles(folder: Path, marker: Path) -> None:
    for name in ("meta.pkl", "tokenizer.pkl", "config.pkl", "data.pkl", "state.pkl"):
        (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    for name in ("ckpt.pt", "model.pt", "optimizer.pt", "rng.pt", "pytorch_model.bin", "training_args.bin"):
        torch.save({"model": Payload(marker)}, folder / name)
    for name in ("train.npy", "val.npy"):
        np.save(folder / name, np.array([Payload(marker)], dtype=object), allow_pickle=True)


@pytest.fixture(scope="module")
def trained(module_cli: Cli) -> Path:
    """Return a folder with a run of 4 steps, `out`, on data with a tokenizer and pickles beside it."""
    work = module_cli.folder
    data = write_tokens(work / "data")
    vocabulary = {chr(48 + number): number for number in range(61)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    stored_tokenizer.save_tokenizer(data, stored_tokenizer.StoredTokenizer(tokenizer, None))
    plant_pickles(data, work / "unpickled")
    done = module_cli(*SMALL, "data.path=data", "hydra.run.dir=out", "trainer.max_steps=4")
    assert done.returncode == 0, done.stdout + done.stderr
    return work


@pytest.fixture
def work(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of that folder that may be changed, as the current folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True, symlinks=True)
    hydra = tmp_path / "out" / ".hydra" / "hydra.yaml"
    hydra.write_text(hydra.read_text().replace(str(trained), str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def signed(checkpoint: Path, **more: Path) -> Path:
    """Give a checkpoint a manifest that fits its files and also names `more`."""
    files = {path.name: path for path in checkpoint.iterdir() if path.suffix in (".safetensors", ".json")}
    files.pop("MANIFEST.json")
    entries = {
        name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for name, path in {**files, **more}.items()
    }
    (checkpoint / "MANIFEST.json").write_text(json.dumps(entries))
    return checkpoint


@pytest.mark.slow
def test_no_verb_unpickles_anything(work: Path, trained: Path, cli: Cli) -> None:
    marker = work / "unpickled"
    for folder in (work / "data", work / "out", work / "out" / "checkpoints", work / "out" / "checkpoints" / STEP):
        plant_pickles(folder, marker)
    dispatch(["inspect", "data"])
    assert dispatch(["evaluate", "out"]) == 0
    assert dispatch(["sample", "out", "--tokens", "3"]) == 0
    done = cli("resume=out", "trainer.max_steps=5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not marker.exists()
    assert not (trained / marker.name).exists()
    pickle.loads((work / "data" / "meta.pkl").read_bytes())
    assert marker.exists()  # so the test would have noticed it


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_pickle_with_the_name_of_a_tensor_file_is_refused(work: Path, as_zip: bool) -> None:
    checkpoint = work / "out" / "checkpoints" / STEP
    if as_zip:
        torch.save({"model": Payload(work / "unpickled")}, checkpoint / "model.safetensors")
    else:
        (checkpoint / "model.safetensors").write_bytes(pickle.dumps(Payload(work / "unpickled")))
    with pytest.raises(BrokenCheckpointError):
        load_checkpoint(signed(checkpoint))
    assert not (work / "unpickled").exists()


FORBIDDEN_IMPORTS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
FORBIDDEN_CALLS = {
    "np.load", "numpy.load", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load",
    "torch.jit.load", "torch.hub.load", "eval", "exec", "compile", "__import__",
}  # fmt: skip
# Evaluates annotations in the source of a trusted target, without builtins.
EVALUATES = {"signature.py": 1}


def dangers(source: str) -> list[str]:
    """Return the calls in a module that could run code from a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_IMPORTS]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if name.split(".")[0] in FORBIDDEN_IMPORTS]
            found += [name for name in names if name in FORBIDDEN_CALLS | {"torch.load"}]
        elif isinstance(node, ast.Call):
            keywords = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            name = ast.unparse(node.func)
            safe = name == "torch.load" and keywords.get("weights_only") is True
            loader = next((ast.unparse(word.value) for word in node.keywords if word.arg == "Loader"), "")
            safe = safe or (name == "yaml.load" and loader in ("yaml.SafeLoader", "FastSafeLoader"))
            if (name in FORBIDDEN_CALLS or name == "torch.load") and not safe:
                found.append(name)
            if name.endswith((".read_pickle", ".recv")):  # a Connection's recv() unpickles
                found.append(name)
            found += [word for word in ("allow_pickle", "trust_remote_code") if keywords.get(word, False) is not False]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_in_the_package_could_run_code_from_a_file(path: Path) -> None:
    assert dangers(path.read_text(encoding="utf-8")) == ["eval"] * EVALUATES.get(path.name, 0)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib as j",
        "from torch import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "f(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "exec(text)",
        "connection.recv()",
    ],
)
def test_the_check_for_dangerous_calls_finds_each_kind(source: str) -> None:
    assert dangers(source)
    assert not dangers("yaml.load(text, Loader=yaml.SafeLoader)")
    assert not dangers("torch.load(path, weights_only=True)\nyaml.safe_load(text)\nre.compile('x')")


EVIL = """
from pathlib import Path
Path({marker!r}).mkdir(exist_ok=True)

class Evil:
    def __init__(self, **anything):
        raise ValueError("Evil was called")
"""


@pytest.fixture
def evil(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the path that importing the module `evil` creates."""
    (work / "evil.py").write_text(EVIL.format(marker=str(work / "imported")))
    monkeypatch.syspath_prepend(str(work))
    yield work / "imported"
    sys.modules.pop("evil", None)


def hostile(path: Path, key: str, value: Any) -> None:
    cfg = OmegaConf.load(path)
    OmegaConf.update(cfg, key, value, force_add=True)
    path.write_text(OmegaConf.to_yaml(cfg), encoding="utf-8")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model._target_", "evil.Evil"),
        ("system._target_", "evil.Evil"),
        ("data._target_", "evil.Evil"),
        ("model.part", {"_target_": "evil.Evil"}),
        ("system.threads", [{"_target_": "evil.Evil"}]),
        ("model", {"_target_": "lmtrain.model.llama.Llama", "x": {"y": [{"_target_": "evil.Evil"}]}}),
    ],
)
@pytest.mark.parametrize("verb", ["evaluate", "sample"])
def test_a_target_named_only_by_the_run_is_not_imported(
    work: Path, evil: Path, verb: str, key: str, value: Any
) -> None:
    hostile(work / "out" / "config.yaml", key, value)
    with pytest.raises(ConfigError, match=r"_target_=evil\.Evil: .* add --trust evil\.Evil$"):
        dispatch([verb, "out"])
    assert not evil.exists()


@pytest.mark.parametrize("verb", ["evaluate", "sample"])
def test_a_target_is_imported_once_it_is_trusted(work: Path, evil: Path, verb: str) -> None:
    hostile(work / "out" / "config.yaml", "model._target_", "evil.Evil")
    with pytest.raises(ConfigError, match="Evil was called"):
        dispatch([verb, "out", "--trust", "other.Part", "--trust", "evil.Evil"])
    assert evil.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model._target_", "evil.Evil"),
        ("logger.mine", {"_target_": "evil.Evil"}),
        ("data.path", "${oc.env:MY_SECRET_KEY}"),
    ],
)
def test_a_resume_imports_and_looks_up_nothing_named_only_by_the_run(
    work: Path, evil: Path, cli: Cli, key: str, value: Any
) -> None:
    for name in ("config.yaml", ".hydra/config.yaml"):
        hostile(work / "out" / name, key, value)
    done = cli("resume=out", "trainer.max_steps=5", MY_SECRET_KEY=SECRET)
    assert not evil.exists()
    assert done.returncode == 2, done.stdout + done.stderr
    assert "trust=" in done.stderr
    assert SECRET not in done.stdout + done.stderr


PAYLOAD = "# @package _global_\nhydra: {callbacks: {evil: {_target_: evil.Evil}}, run: {dir: elsewhere}}\n"


@pytest.mark.parametrize(
    "line",
    ["experiments=/proc/self/cwd/out/payload", "experiments=../out/payload", "+data@_global_=../../out/payload"],
)
def test_a_config_chosen_by_path_in_a_strangers_run_is_not_composed(work: Path, evil: Path, line: str) -> None:
    (work / "out" / "payload.yaml").write_text(PAYLOAD)
    with (work / "out" / ".hydra" / "overrides.yaml").open("a") as recorded:
        recorded.write(f"- {line}\n")
    before = sorted(work.iterdir())
    for command in (["fork=out"], ["-m", "fork=out", "seed=1,2"], ["--rerun", "out"], ["plan", "fork=out"]):
        with pytest.raises(ConfigError, match=r"out/\.hydra/overrides\.yaml: "):
            dispatch(command)
    assert not evil.exists()
    assert sorted(work.iterdir()) == before


@pytest.mark.parametrize("name", ["checkpoints", "wandb/logs", ".hydra", "metrics.jsonl", "train.log"])
def test_a_run_is_not_resumed_through_a_link(work: Path, tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    mine, place = tmp_path_factory.mktemp("mine") / "it", work / "out" / name
    place.parent.mkdir(exist_ok=True)
    if place.exists():
        shutil.move(place, mine)
    place.symlink_to(mine)
    kept = contents(mine)
    if mine.is_dir():
        (mine / ".tmp-step-00000004").mkdir()
    with pytest.raises(ConfigError, match=f"out/{name}: a link"):
        dispatch(["resume=out", "trainer.max_steps=5"])
    assert contents(mine) == kept


@pytest.mark.parametrize("verb", ["evaluate", "sample"])
@pytest.mark.parametrize("name", ["checkpoints", f"checkpoints/{STEP}", "config.yaml", "tokenizer.json"])
def test_a_command_that_reads_a_run_follows_no_link_out_of_it(
    work: Path, tmp_path_factory: pytest.TempPathFactory, verb: str, name: str
) -> None:
    mine = tmp_path_factory.mktemp("mine") / "it"
    shutil.move(work / "out" / name, mine)
    (work / "out" / name).symlink_to(mine)
    with pytest.raises(ConfigError, match=rf"out/{Path(name).parts[0]}\S*: a link"):  # `best` leads there as well
        dispatch([verb, "out"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in [folder, *folder.rglob("*")] if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(("logger", "key"), [("wandb.WandbLogger", "links"), ("trackio.TrackioLogger", "folder")])
def test_a_resume_writes_nothing_into_a_folder_named_by_a_strangers_run(
    work: Path, tmp_path_factory: pytest.TempPathFactory, cli: Cli, logger: str, key: str
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "data").symlink_to(work / "data")
    hostile(work / "out" / ".hydra" / "hydra.yaml", "hydra.runtime.cwd", str(elsewhere))
    name = logger.partition(".")[0]
    node = {"_target_": f"lmtrain.logger.{logger}", "project": "x", key: "here"}
    for file in ("config.yaml", ".hydra/config.yaml"):
        hostile(work / "out" / file, f"logger.{name}", node)
    done = cli("resume=out", "trainer.max_steps=5", "allow_changes=[scheduler]")
    leaves_it_out = key == "links"  # the links are only a convenience
    assert done.returncode == (0 if leaves_it_out else 2), done.stdout + done.stderr
    problem = f"logger.{name}.{key}=here: would be in {elsewhere}, where the run says it was started"
    assert problem in done.stdout + done.stderr
    assert os.listdir(elsewhere) == ["data"]


def test_a_resume_imports_no_modules_from_a_folder_named_by_the_run(work: Path, cli: Cli) -> None:
    (work / "elsewhere").mkdir()
    (work / "elsewhere" / "data").symlink_to(work / "data")
    for module in ("torch", "numpy", "safetensors", "pydantic"):
        (work / "elsewhere" / f"{module}.py").write_text(EVIL.format(marker=str(work / "imported")))
    hostile(work / "out" / ".hydra" / "hydra.yaml", "hydra.runtime.cwd", str(work / "elsewhere"))
    cli("resume=out", "trainer.max_steps=5")
    assert not (work / "imported").exists()


def test_a_config_bomb_stops_a_resume(work: Path, cli: Cli) -> None:
    lines = ["a0: &a0 [x, x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 5))]
    (work / "out" / ".hydra" / "config.yaml").write_text("\n".join(lines))
    done = cli("resume=out")
    assert done.returncode == 2
    assert "has an alias" in done.stderr


def test_a_target_in_a_checkpoint_is_not_called(work: Path, evil: Path) -> None:
    checkpoint = work / "out" / "checkpoints" / STEP
    state = json.loads((checkpoint / "state.json").read_text())
    node = {"_target_": "evil.Evil"}
    (checkpoint / "state.json").write_text(json.dumps({**state, **node, "model": node, "extra": [node]}))
    signed(checkpoint)
    assert load_checkpoint(checkpoint).state["extra"] == [node]
    assert dispatch(["evaluate", "out"]) == 0
    assert not evil.exists()


def test_a_saved_config_does_not_read_the_environment(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET_KEY", SECRET)
    hostile(work / "out" / "config.yaml", "data.path", "${oc.env:MY_SECRET_KEY}")
    with pytest.raises(ConfigError, match=r"data\.path=oc\.env:MY_SECRET_KEY") as raised:
        dispatch(["evaluate", "out"])
    assert SECRET not in str(raised.value)
    monkeypatch.setenv("LMTRAIN_DATA", str(work))
    hostile(work / "out" / "config.yaml", "data.path", "${oc.env:LMTRAIN_DATA}/data")
    assert dispatch(["evaluate", "out"]) == 0


CHECKPOINT_FILES = ["MANIFEST.json", "state.json", "model.safetensors"]


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Stop a test that waits for something that never comes."""

    def refuse(number: int, frame: Any) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, refuse)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    "name",
    [
        *(f"out/checkpoints/{STEP}/{name}" for name in CHECKPOINT_FILES),
        "out/config.yaml",
        "out/.hydra/hydra.yaml",
        "out/result.json",
        "out/tokenizer.json",
        "data/meta.json",
        "data/val.bin",
    ],
)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(work: Path, name: str) -> None:
    (work / name).unlink()
    os.mkfifo(work / name)
    if Path(name).name in ("hydra.yaml", "result.json", "tokenizer.json"):  # files that it does not need
        assert dispatch(["evaluate", "out"]) == 0
    else:
        with pytest.raises(ConfigError, match=r"^[^\n]+$"):
            dispatch(["evaluate", "out"])


def test_links_in_a_sweep_that_lead_back_are_not_followed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "multirun.yaml").write_text("{}")
    for name in ("a", "b"):
        (work / name).symlink_to(work)
    assert dispatch(["evaluate", "."]) == 0
    assert capsys.readouterr().out.count(" val ") == 1


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"step": 10**30}, f"train.step={10**30}, which is not a valid count"),
        ({"samples": -1}, "train.samples=-1, which is not a valid count"),
        ({"step": "4"}, "train.step=4, which is not a valid count"),
        ({"speed": 1}, "has an unexpected entry in train"),
        (None, "has no train"),
    ],
)
def test_an_impossible_state_is_reported_in_one_line(work: Path, train: Any, message: str) -> None:
    checkpoint = work / "out" / "checkpoints" / STEP
    state = json.loads((checkpoint / "state.json").read_text())
    before = state.pop("train")
    (checkpoint / "state.json").write_text(json.dumps(state if train is None else {**state, "train": before | train}))
    signed(checkpoint)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        dispatch(["evaluate", "out", "--checkpoint", "4"])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_fork_origin(Path("out"), 4)


SIZES = [("d_model", 200_000), ("n_layer", 2_000_000), ("vocab_size", 10**12), ("block_size", 10**10)]


@pytest.mark.parametrize(("key", "value"), SIZES)
def test_model_sizes_that_do_not_fit_the_checkpoint_allocate_no_memory(work: Path, key: str, value: int) -> None:
    hostile(work / "out" / "config.yaml", f"model.{key}", value)
    before = peak_memory()
    with pytest.raises(ConfigError, match=rf"^model \(.*{key}={value}.*\): "):
        dispatch(["evaluate", "out"])
    assert peak_memory() - before < 100 << 20


@pytest.mark.slow
@pytest.mark.parametrize("command", ["resume=out", "fork=out"])
def test_model_sizes_that_do_not_fit_allocate_no_memory_in_a_resume(work: Path, cli: Cli, command: str) -> None:
    for name in ("config.yaml", ".hydra/config.yaml"):
        hostile(work / "out" / name, "model.d_model", 200_000)
    done = cli(command, "trainer.max_steps=6", *(["hydra.run.dir=new"] if command == "fork=out" else []))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "d_model=200000" in done.stderr
    assert "parameters of the checkpoint" in done.stderr


@pytest.mark.parametrize("name", ["../secret.json", "{work}/secret.json", "..", "./state.json", "a/../state.json", ""])
def test_a_manifest_names_nothing_outside_the_checkpoint(work: Path, name: str) -> None:
    checkpoint = work / "out" / "checkpoints" / STEP
    (checkpoint.parent / "secret.json").write_text("{}")
    (work / "secret.json").write_text("{}")
    named = {name.format(work=work): checkpoint.parent / "secret.json"}
    with pytest.raises(BrokenCheckpointError):
        load_checkpoint(signed(checkpoint, **named))


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", ["state.json", "model.safetensors"])
def test_a_link_out_of_the_checkpoint_is_not_followed(work: Path, name: str, listed: bool) -> None:
    checkpoint = work / "out" / "checkpoints" / STEP
    shutil.move(checkpoint / name, work / name)
    (checkpoint / name).symlink_to(work / name)
    signed(checkpoint)
    if not listed:
        manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
        del manifest[name]
        (checkpoint / "MANIFEST.json").write_text(json.dumps(manifest))
    try:
        loaded = load_checkpoint(checkpoint)
    except BrokenCheckpointError:
        return
    assert name == "model.safetensors"  # a file that the manifest does not list is left out
    assert "model" not in loaded.tensors


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 200_000_000, 0])
def test_an_absurd_header_of_tensors_is_refused(work: Path, length: int) -> None:
    checkpoint = work / "out" / "checkpoints" / STEP
    with (checkpoint / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", length))
        file.truncate(8 + (length if length < 2**63 else 100))
    with pytest.raises(BrokenCheckpointError):
        load_checkpoint(signed(checkpoint))


def pad(path: Path, size: int) -> None:
    """Add so many spaces to a JSON file."""
    with path.open("ab") as file:
        file.write(b" " * size)


def test_json_in_a_checkpoint_has_a_size_limit(work: Path) -> None:
    checkpoint = work / "out" / "checkpoints" / STEP
    pad(checkpoint / "MANIFEST.json", 100_000_000)
    with pytest.raises(BrokenCheckpointError):
        load_checkpoint(checkpoint)
    pad(checkpoint / "state.json", 100_000_000)
    with pytest.raises(BrokenCheckpointError):
        load_checkpoint(signed(checkpoint))


def test_deeply_nested_json_in_a_checkpoint_is_reported_briefly(work: Path) -> None:
    checkpoint = work / "out" / "checkpoints" / STEP
    (checkpoint / "state.json").write_text("[" * 100_000)
    with pytest.raises(BrokenCheckpointError):
        load_checkpoint(signed(checkpoint))
    (checkpoint / "MANIFEST.json").write_text("[" * 100_000)
    with pytest.raises(BrokenCheckpointError):
        load_checkpoint(checkpoint)


def test_json_beside_token_files_and_in_runs_has_size_limits(tmp_path: Path) -> None:
    data = write_tokens(tmp_path / "data")
    names = ("inputs.json", "journal.json", "result.json", "tokenizer_config.json")
    for name in names:
        (data / name).write_text("[" * 100_000)
    assert inputs.read_inputs(data) is None
    assert journal.read_journal(data) is None
    assert read_json(data / "result.json") == {}
    with pytest.raises(DataError, match=r"tokenizer_config\.json: .*nested too deeply"):
        stored_tokenizer.eos_tokens(data)
    for name in names:
        (data / name).write_text("{}")
        os.truncate(data / name, 1 << 30)  # a sparse file, which costs only memory, if it is read
    before = peak_memory()
    assert inputs.read_inputs(data) is None
    assert journal.read_journal(data) is None
    assert read_json(data / "result.json") == {}
    with pytest.raises(DataError, match=r"tokenizer_config\.json: .*larger than"):
        stored_tokenizer.eos_tokens(data)
    assert peak_memory() - before < 700 << 20
    pad(data / "meta.json", 65 << 20)
    with pytest.raises(DataError, match="larger than"):
        read_meta(data)
    (data / "meta.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="nested too deeply"):
        read_meta(data)


def peak_memory() -> int:
    """Return the peak memory of this process in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("name", ["../secret.bin", "{work}/secret.bin", "..", "a/../../secret.bin", "."])
@pytest.mark.parametrize("field", ["tokenizer", "shard", "split"])
def test_a_meta_names_nothing_outside_its_folder(tmp_path: Path, field: str, name: str) -> None:
    data = write_tokens(tmp_path / "data")
    name = name.format(work=tmp_path)
    (tmp_path / "secret.bin").write_bytes((data / "train.bin").read_bytes())
    fields = json.loads((data / "meta.json").read_text())
    train = fields["splits"]["train"]
    if field == "tokenizer":
        fields["tokenizer"] = {"kind": "bpe", "file": name, "sha256": "0"}
    elif field == "shard":
        train["shards"] = [{"file": name, "tokens": train["tokens"], "sha256": "0"}]
    else:
        fields["splits"][name.removesuffix(".bin")] = train
    (data / "meta.json").write_text(json.dumps(fields))
    for read in (
        read_meta,
        lambda folder: token_files.TokenFiles(folder, "train"),
        lambda folder: check_tokenizer(folder, folder),
    ):
        with pytest.raises(DataError, match="which is not a file inside the folder"):
            read(data)


@pytest.mark.parametrize("count", [-1, 2**31 - 1, 0, 1, -(2**31)])
def test_an_absurd_count_in_a_header_is_refused(tmp_path: Path, count: int) -> None:
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, count
    (tmp_path / "train.bin").write_bytes(header.tobytes() + b"\0\0" * 5)
    with pytest.raises(DataError, match=f"its header says {count:,} tokens, but 10 bytes follow"):
        token_files.TokenFiles(tmp_path, "train")


@pytest.mark.parametrize(
    ("key", "value"),
    [("vocab_size", "many"), ("end_of_text", [1]), ("recipe", 3), ("splits", [1]), ("dtype", {}), ("tokenizer", None)],
)
def test_wrong_types_in_meta_are_reported_in_one_line(tmp_path: Path, key: str, value: Any) -> None:
    data = write_tokens(tmp_path / "data")
    fields = json.loads((data / "meta.json").read_text())
    (data / "meta.json").write_text(json.dumps({**fields, key: value}))
    with pytest.raises(DataError, match=r"meta\.json: not a meta\.json of token files"):
        read_meta(data)


@pytest.mark.slow
def test_a_failing_run_keeps_no_secret(token_folder: Path, tmp_path: Path, cli: Cli) -> None:
    error = "RuntimeError(f'401 from https://me:password@host with {os.environ[\"MY_API_KEY\"]!r}')"
    source = write_failing_model(tmp_path, error)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "mine.py")
    git(tmp_path, "commit", "-qm", "x")
    (tmp_path / "mine.py").write_text(f"KEY = '{SECRET}'\n{source}")
    kept = [text for text in TINY if not text.startswith(("model", "logger"))]
    command = [*kept, "model=fails", "logger=wandb", f"data.path={token_folder}", "hydra.run.dir=out"]
    notes = f"logger.wandb.notes={ON_THE_COMMAND_LINE}"
    done = cli(*command, notes, MY_API_KEY=SECRET, WANDB_API_KEY=SECRET, OTHER_TOKEN=ON_THE_COMMAND_LINE)
    assert done.returncode == 1, done.stdout + done.stderr
    assert (
        "401 from https://<credentials>@host with '<"
        in json.loads((tmp_path / "out" / "result.json").read_text())["error"]
    )
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert "+KEY = '<" in json.loads((tmp_path / "out" / "environment.json").read_text())["git"]["diff"]
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in done.stdout + done.stderr
    # The config keeps the user's own text; the command line is also written in other places.
    for name in ("environment.json", "train.log", "result.json"):
        assert ON_THE_COMMAND_LINE not in (tmp_path / "out" / name).read_text()
    (kept_by_wandb,) = (path.read_bytes() for path in files if path.suffix == ".wandb")
    assert b"logger.wandb.notes=<OTHER_TOKEN>" in kept_by_wandb
    assert f"={ON_THE_COMMAND_LINE}".encode() not in kept_by_wandb


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *words], check=True, cwd=folder)


@pytest.mark.parametrize("way", ["fsmonitor", "external", "textconv", "clean", "process", "submodule"])
def test_the_config_of_a_git_repository_runs_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    marker = tmp_path / "ran"
    repository = tmp_path / "repository"
    repository.mkdir()
    git(repository, "init", "-q")
    (repository / "a.py").write_text("one\n")
    (repository / ".gitattributes").write_text("*.py diff=evil\n")
    if way == "submodule":
        inner = repository / "inner"
        inner.mkdir()
        git(inner, "init", "-q")
        (inner / "b.py").write_text("one\n")
        (inner / ".gitattributes").write_text("*.py filter=evil\n")
        git(inner, "add", ".")
        git(inner, "commit", "-qm", "x")
    git(repository, "-c", "advice.addEmbeddedRepo=false", "add", ".")
    git(repository, "commit", "-qm", "x")
    (repository / "a.py").write_text("two\n")
    if way == "submodule":
        (inner / "b.py").write_text("two\n")
    script = tmp_path / "evil.sh"
    script.write_text(f"#!/bin/sh\nmkdir -p {marker}\ncat\n")
    script.chmod(0o755)
    if way in ("clean", "process"):
        (repository / ".gitattributes").write_text("*.py filter=a=b\n")
    settings = {
        "fsmonitor": ["core.fsmonitor"],
        "external": ["diff.external"],
        "textconv": ["diff.evil.textconv", "diff.evil.command"],
        "clean": ["filter.a=b.clean"],
        "process": ["filter.a=b.process"],
        "submodule": ["filter.evil.clean"],
    }
    for key in settings[way]:
        git(repository / "inner" if way == "submodule" else repository, "config", key, str(script))
    if way in ("clean", "process"):
        git(repository, "config", "filter.a=b.required", "true")
    monkeypatch.chdir(repository)
    recorded = describe_environment("x", "cpu")["git"]
    assert "+two" in recorded["diff"]
    assert not marker.exists()
    subprocess.run(["git", "diff", "HEAD"], capture_output=True, stdin=subprocess.DEVNULL, timeout=30)
    assert marker.exists()  # so the test would have noticed it
