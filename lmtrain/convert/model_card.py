"""Writes the model card of an exported model: what it is, where it comes from, and the facts of its training."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from omegaconf import DictConfig, OmegaConf

from lmtrain.data.stored_tokenizer import TOKENIZER_FILE
from lmtrain.files.durable import write_atomically
from lmtrain.files.limited import read_json
from lmtrain.run.reading.notebook_view import LOSSES, losses_as_picture
from lmtrain.run.reading.run_data import NO_DATA
from lmtrain.run.reading.stored_run import Run
from lmtrain.terminal.as_text import visible
from lmtrain.terminal.redact import redact, redacted
from lmtrain.terminal.units import duration, si

CARD, CURVE = "README.md", "loss.png"
SHOWN_HASH = 16  # characters
LICENCE = "Fill in the licence of the model, here and in `license:` at the top, before you share it."
# Options of the model that change only how it is computed.
NOT_ARCHITECTURE = ("_target_", "attention", "recompute", "dropout", "init_std", "end_of_text")


def write_model_card(folder: Path, run: Run, config: DictConfig, step: int) -> list[str]:
    """Write `README.md`, and `loss.png` if matplotlib is installed, into the folder of an exported model.

    The card tells names, not places: paths are shortened to their last part, and secrets are left out.

    Args:
        folder: The folder of the model, with its tokenizer if there is one.
        run: The run that trained it or was imported.
        config: The config of the run.
        step: The optimizer steps of the exported checkpoint.

    Returns:
        Remarks for the user.
    """
    picture = losses_as_picture(run.metrics, "png")
    if picture:
        (folder / CURVE).write_bytes(picture)
    data = ModelCardData(library_name="transformers", pipeline_tag="text-generation", license="other", tags=["lmtrain"])
    sections = _sections(run, OmegaConf.to_container(config), step, bool(picture), (folder / TOKENIZER_FILE).is_file())
    body = "\n\n".join(filter(None, sections))
    write_atomically(folder / CARD, str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")))
    has_losses = any(name in line for line in run.metrics for name in LOSSES)
    remarks = [f"before you share the model, fill in its licence in {CARD}"]
    if has_losses and not picture:
        remarks.append("the card has no curve, because matplotlib is missing: pip install 'lmtrain[plot]'")
    return remarks


def _sections(run: Run, config: Any, step: int, has_picture: bool, has_tokenizer: bool) -> Iterator[str]:
    """Yield the parts of the card; a list without an entry is an empty text."""
    environment, result = run.environment, run.result
    imported = read_json(run.directory / "imported.json")
    name = str(config.get("name", run.directory.name))
    model = _mapping(environment.get("model"))
    yield f"# {_plain(name)}"
    parameters = f" of {model['parameters']:,} parameters" if isinstance(model.get("parameters"), int) else ""
    kind = f" ({_code(model['class'])})" if model.get("class") else ""
    last = result.get("steps") or _mapping(config.get("trainer")).get("max_steps") or step
    first_step = imported.get("iter_num")  # nanoGPT's checkpoints do not begin at step 0
    is_trained = step > (first_step if isinstance(first_step, int) else 0)
    origin = [f"imported from {_code(_name_of_source(imported))}"] if imported else []
    if is_trained:
        origin.append(f"trained with lmtrain: its state after step {step:,} of {last:,}")
    else:
        origin.append("not trained with lmtrain")
    yield f"A language model{parameters}{kind}, {', '.join(origin)}."
    yield _use(has_tokenizer)
    yield _list("Results", _results(run, step))
    if has_picture:
        yield f"![loss by step]({CURVE})"
    yield _list("Model", _options(config.get("model"), NOT_ARCHITECTURE))
    if is_trained:
        yield _list("Data", _data(config, environment, run))
        yield _list("Training", _recipe(config, environment, result))
    yield _list("Origin", _origin(environment, result, run))
    yield f"## Licence\n\n{LICENCE}"


def _name_of_source(imported: Mapping[str, Any]) -> str:
    """Return the name of the folder or file that a run was imported from."""
    return next((Path(str(imported[key])).name for key in ("folder", "file", "checkpoint") if key in imported), "")


def _use(has_tokenizer: bool) -> str:
    if not has_tokenizer:
        return (
            "```python\n"
            "import torch\n"
            "from transformers import AutoModelForCausalLM\n\n"
            'model = AutoModelForCausalLM.from_pretrained(".")  # the folder of this file\n'
            "ids = torch.tensor([[1, 2, 3]])  # there is no tokenizer, so give the ids of tokens\n"
            "print(model.generate(ids, max_new_tokens=50)[0])\n"
            "```"
        )
    return (
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained(".")  # the folder of this file\n'
        'model = AutoModelForCausalLM.from_pretrained(".")\n'
        'ids = tokenizer("Once upon a time", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0]))\n"
        "```\n\n"
        "`vllm serve .` serves it."
    )


def _results(run: Run, step: int) -> Iterator[tuple[str, str]]:
    last: dict[str, float] = {}  # what was logged last, up to the exported step
    for line in run.metrics:
        if line.get("step", math.inf) <= step:
            last |= line
    if "val/loss" in last:
        yield "validation loss", f"{last['val/loss']:.4f} nats per token"
        yield "perplexity", f"{math.exp(min(last['val/loss'], 700)):.4g}"
    if "val/bits_per_byte" in last:
        yield "bits per byte", f"{last['val/bits_per_byte']:.4f}"
    if "train/loss" in last:
        yield "training loss", f"{last['train/loss']:.4f} nats per token"
    if "tokens" in last:
        yield "tokens seen", si(last["tokens"])


def _data(config: Mapping[str, Any], environment: Mapping[str, Any], run: Run) -> Iterator[tuple[str, str]]:
    data = _mapping(config.get("data"))
    paths = data.get("paths") or ({"": data["path"]} if data.get("path") else {})
    for source, path in paths.items():
        if path == NO_DATA:
            continue
        yield f"tokens {source}".strip(), _code(Path(str(path)).name)
    for key, value in _options(_mapping(config.get("prepare")).get("source"), ("_target_",)):
        yield f"source, {key}", value
    measured = _mapping(_mapping(environment.get("evaluation")).get("val"))
    kind = _mapping(measured.get("tokenizer")).get("kind")
    if kind:
        yield "tokenizer", f"{_code(kind)}, {measured.get('vocab_size', 0):,} ids"
    for split, fingerprint in _mapping(environment.get("data")).items():
        yield f"SHA-256 of {split}", _code(str(fingerprint)[:SHOWN_HASH])


def _recipe(
    config: Mapping[str, Any], environment: Mapping[str, Any], result: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    data, trainer = _mapping(config.get("data")), _mapping(config.get("trainer"))
    size, accumulated = data.get("batch_size"), trainer.get("gradient_accumulation_steps") or 1
    sequences = trainer.get("global_batch_size") or (size * accumulated if isinstance(size, int) else None)
    if isinstance(sequences, int) and isinstance(length := data.get("block_size"), int):
        yield "batch", f"{sequences:,} sequences of {length:,} tokens"
    for part in ("optimizer", "scheduler"):
        node = _mapping(config.get(part))
        target = str(node.get("_target_", "")).rpartition(".")[2]
        inside = ", ".join(f"{key} {value}" for key, value in _options(node, ("_target_", "_partial_", "rules")))
        yield part, f"{_code(target)}: {inside}" if inside else _code(target)
    yield "gradient clipping", _code(trainer.get("grad_clip"))
    yield "seed", _code(config.get("seed"))
    yield "device", _code(environment.get("device"))
    if isinstance(seconds := result.get("seconds"), int | float):
        yield "training time", duration(seconds)


def _origin(environment: Mapping[str, Any], result: Mapping[str, Any], run: Run) -> Iterator[tuple[str, str]]:
    packages = _mapping(environment.get("packages"))
    yield "run", _code(run.directory.name)
    yield "config hash", _code(result.get("config_hash"))
    for name in ("lmtrain", "torch"):
        if name in packages:
            yield name, _code(packages[name])
    if commit := _mapping(environment.get("git")).get("commit"):
        yield "git commit", _code(commit)
    for key in ("forked_from", "averaged_from", "init_from"):
        if environment.get(key):
            yield key.replace("_", " "), "another checkpoint; see `environment.json` of the run"


def _options(node: Any, without: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield the values of a config node that are not null, false or empty, with paths shortened to their last part."""
    for key, value in redacted(_mapping(node)).items():
        if key not in without and value not in (None, False, [], {}):
            yield str(key), _code(_without_folders(value))


def _without_folders(value: Any) -> Any:
    """Return a value in which each path, also inside lists and mappings, is shortened to its last part."""
    if isinstance(value, Mapping):
        return {_without_folders(key): _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and "/" in value else value


def _list(title: str, items: Iterator[tuple[str, str]]) -> str:
    """Return a list of what is known, with its heading; an empty text if nothing is."""
    lines = [f"- {name}: {value}" for name, value in items if value]
    return "\n".join([f"## {title}\n", *lines]) if lines else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _code(value: object) -> str:
    """Return a value as code, in which Markdown and HTML mean nothing; an empty text for None."""
    if value is None:
        return ""
    text = str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())
    text = visible(redact(text)).replace("`", "'")
    return f"`{text}`"


def _plain(text: str) -> str:
    """Return a text of letters, digits and plain marks for a heading."""
    return "".join(character if character.isalnum() or character in " -_.,+=" else " " for character in text).strip()
