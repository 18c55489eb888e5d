"""`python -m lmtrain benchmark sample [overrides]`: times text generation with and without a cache, and transformers'.

All contenders continue the same prompts with the same weights, up to the same length, with the same settings.
"""

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from lmtrain.benchmark.turns import median, ratio, take_turns
from lmtrain.config.batch_size import refuse_auto
from lmtrain.config.build import raising_config_errors
from lmtrain.config.compose import compose
from lmtrain.config.preflight import check_for_plan
from lmtrain.config.recorded.recompose import expand_fork
from lmtrain.errors import ConfigError
from lmtrain.machine import write_json_with_machine
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser, WholeNumber, output_file
from lmtrain.terminal.units import counted

if TYPE_CHECKING:
    import torch
    from torch import nn

CACHE, RECOMPUTE, TRANSFORMERS = "cache", "recompute", "transformers"
MEANINGS = {
    CACHE: "keeps keys and values of earlier tokens",
    RECOMPUTE: "computes earlier tokens again for each token, as sample --no-cache",
    TRANSFORMERS: "generate() of the same model as `export --to hf` writes it, with its own cache",
}
TEMPERATURE, TOP_K = 0.8, 50  # the defaults of `sample`
WARMUP_TOKENS = 8

Generate = Callable[[int], Any]  # continues all texts of a batch by a number of tokens


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain benchmark sample",
        description="Times text generation with a model of random weights, in float32: with a cache of keys and "
        "values, with all earlier tokens computed again, and by transformers' generate().",
        epilog="Example: python -m lmtrain benchmark sample model=llama_10m model.vocab_size=4096 data.block_size=512",
    )
    parser.add_argument("overrides", nargs="*", help="config overrides, as for training")
    parser.add_argument("--tokens", type=WholeNumber(1), default=512, help="tokens of each text (default: 512)")
    parser.add_argument(
        "--batch-sizes",
        nargs="+",
        type=WholeNumber(1),
        default=[1, 8],
        metavar="B",
        help="texts at once (default: 1 8)",
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(MEANINGS), default=list(MEANINGS), help="contenders (default: all)"
    )
    parser.add_argument("--rounds", type=WholeNumber(1), default=3, help="measured rounds (default: 3)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write all numbers to this file")
    options = parser.read(arguments)
    cfg, _ = check_for_plan(compose(expand_fork(options.overrides, prepares=False)), "benchmark sample")
    refuse_auto(cfg)
    if options.tokens > cfg.data.block_size:
        raise ConfigError(
            f"--tokens {options.tokens}: the model sees at most data.block_size={cfg.data.block_size} tokens; give "
            f"--tokens {cfg.data.block_size} or data.block_size={options.tokens}"
        )
    if cfg.model.get("vocab_size") is None:
        raise ConfigError("model.vocab_size=null: benchmark sample needs a number, for example model.vocab_size=4096")

    from lmtrain.parts import build_model, build_system

    with raising_config_errors():
        system = build_system(cfg, compile=False, dtype="float32")
        model = build_model(cfg).to(system.device).eval()
    theirs = _transformers_model(cfg, model) if TRANSFORMERS in options.only else None
    console.print(
        f"{type(model).__name__}, {sum(each.numel() for each in model.parameters()) / 1e6:.1f}M parameters, "
        f"{options.tokens:,} tokens; {system.device.type}, float32; medians of {counted(options.rounds, 'round')}, "
        "ratios are taken within each round"
    )
    table = Table("texts at once", "contender", "tokens/s", f"ratio to {CACHE}" if CACHE in options.only else "")
    found: dict[str, list[dict[str, float]]] = {}
    for batch_size in options.batch_sizes:
        contenders = _contenders(cfg, model, theirs, options.only, batch_size, system.device)
        for generate in contenders.values():
            generate(min(WARMUP_TOKENS, options.tokens))
        with console.status(f"measuring {counted(batch_size, 'text')} at once"):
            seconds = take_turns(
                contenders, options.rounds, lambda generate, _: _seconds(generate, options.tokens, system.synchronize)
            )
        count = options.tokens * batch_size
        speeds = [{name: count / each for name, each in measured.items()} for measured in seconds]
        found[str(batch_size)] = speeds
        for name in contenders:
            against = f"{ratio(speeds, name, CACHE):.3f}" if CACHE in contenders else ""
            table.add_row(str(batch_size), name, f"{median(speeds, name):,.1f}", against)
    console.print(table)
    for name, meaning in MEANINGS.items():
        if any(name in speeds[0] for speeds in found.values()):
            console.print(f"  {name}: {meaning}", markup=False)
    if options.json:
        write_json_with_machine(
            options.json, overrides=options.overrides, tokens=options.tokens, tokens_per_second=found
        )
    return 0


def _seconds(generate: Generate, tokens: int, synchronize: Callable[[], None]) -> float:
    synchronize()
    started = time.perf_counter()
    generate(tokens)
    synchronize()
    return time.perf_counter() - started


def _contenders(
    cfg: DictConfig, model: "nn.Module", theirs: Any, only: Sequence[str], batch_size: int, device: "torch.device"
) -> dict[str, Generate]:
    import torch

    prompts = [[number % cfg.model.vocab_size] for number in range(batch_size)]
    ours = partial(_generate, model, prompts, cfg.data.block_size, cfg.model.vocab_size, device)
    found: Mapping[str, Generate | None] = {
        CACHE: partial(ours, True),
        RECOMPUTE: partial(ours, False),
        TRANSFORMERS: None
        if theirs is None
        else partial(_generate_theirs, theirs, torch.tensor(prompts, device=device)),
    }
    return {name: generate for name, generate in found.items() if name in only and generate is not None}


def _generate(
    model: "nn.Module",
    prompts: Sequence[Sequence[int]],
    block_size: int,
    vocab_size: int,
    device: "torch.device",
    cached: bool,
    tokens: int,
) -> list[list[int]]:
    """Continue the prompts with lmtrain and return the new ids."""
    from lmtrain.sample.choice import Choice, random_numbers
    from lmtrain.sample.generate import Continuation, continue_texts

    texts = [Continuation(prompt, random_numbers(0, number, tokens)) for number, prompt in enumerate(prompts)]
    continue_texts(
        model,
        texts,
        Choice(TEMPERATURE, TOP_K),
        block_size=block_size,
        vocab_size=vocab_size,
        device=device,
        batch_size=len(texts),
        cached=cached,
    )
    return [text.ids for text in texts]


def _generate_theirs(model: Any, prompts: "torch.Tensor", tokens: int) -> Any:
    """Continue the prompts with transformers and return prompts and new ids."""
    import torch

    return model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=TOP_K,
        use_cache=True,
    )


def _transformers_model(cfg: DictConfig, model: "nn.Module") -> Any:
    """Return the model as transformers loads its export; None, with a message, if that is not possible."""
    if not importlib.util.find_spec("transformers"):
        console.print(f"{TRANSFORMERS} is left out: it is not installed", style="yellow")
        return None
    import torch

    from lmtrain.convert.hugging_face.export import write_model_files

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM

    node: Any = OmegaConf.to_container(cfg.model, resolve=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_model_files(Path(folder), node, model, None, "float32")
            loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except ValueError as error:
        console.print(f"{TRANSFORMERS} is left out: {error}", style="yellow", markup=False)
        return None
    device = next(model.parameters()).device
    return loaded.to(device=device).eval()
