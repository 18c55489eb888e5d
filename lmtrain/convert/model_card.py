"""Writes the model card of an exported model: what it is, and the facts of the run that trained it."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from omegaconf import DictConfig, OmegaConf

from lmtrain.files.durable import write_atomically
from lmtrain.run.reading.notebook_view import losses_as_picture
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
        folder: The folder of the model.
        run: The run that trained it.
        config: The config of the run.
        step: The optimizer steps of the exported checkpoint.

    Returns:
        Remarks for the user.
    """
    picture = losses_as_picture(run.metrics, "png")
    if picture:
        (folder / CURVE).write_bytes(picture)
    data = ModelCardData(library_name="transformers", pipeline_tag="text-generation", license="other", tags=["lmtrain"])
    body = "\n\n".join(_sections(run, OmegaConf.to_container(config), step, bool(picture)))
    write_atomically(folder / CARD, str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")))
    without = [] if picture else ["the card has no curve, because matplotlib is missing: pip install 'lmtrain[plot]'"]
    return [f"before you share the model, fill in its licence in {CARD}", *without]


def _sections(run: Run, config: Any, step: int, has_picture: bool) -> Iterator[str]:
    environment, result = run.environment, run.result
    name = str(config.get("name", run.directory.name))
    model = _mapping(environment.get("model"))
    yield f"# {_plain(name)}"
    parameters = f" of {model['parameters']:,} parameters" if isinstance(model.get("parameters"), int) else ""
    kind = f" ({_code(model['class'])})" if model.get("class") else ""
    last = result.get("steps") or _mapping(config.get("trainer")).get("max_steps") or step
    yield f"A language model{parameters}{kind}, trained with lmtrain: its state after step {step:,} of {last:,}."
    yield _use()
    yield _list("Results", _results(run, step))
    if has_picture:
        yield f"![loss by step]({CURVE})"
    yield _list("Model", _options(config.get("model"), NOT_ARCHITECTURE))
    yield _list("Data", _data(config, environment, run))
    yield _list("Training", _recipe(config, environment, result))
    yield _list("Origin", _origin(environment, result, run))
    yield f"## Licence\n\n{LICENCE}"


def _use() -> str:
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
            is_path = isinstance(value, str) and "/" in value
            yield str(key), _code(Path(value).name if is_path else value)


def _list(title: str, items: Iterator[tuple[str, str]]) -> str:
    return "\n".join([f"## {title}\n", *(f"- {name}: {value}" for name, value in items)])


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _code(value: object) -> str:
    """Return a value as code, in which Markdown and HTML mean nothing."""
    text = str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())
    text = visible(redact(text)).replace("`", "'")
    return f"`{text}`"


def _plain(text: str) -> str:
    """Return a text of letters, digits and plain marks for a heading."""
    return "".join(character if character.isalnum() or character in " -_.,+=" else " " for character in text).strip()
