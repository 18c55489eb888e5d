"""`python -m lmtrain sample RUN_DIR --prompt …`: generates text from a checkpoint."""

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmtrain.commands.evaluate import TRUST_HELP
from lmtrain.commands.tokenizer_option import add_tokenizer_option, with_tokenizer
from lmtrain.config.recorded.run_names import find_run, why_no_run
from lmtrain.errors import ConfigError
from lmtrain.run.reading.run_data import NO_TOKENIZER
from lmtrain.terminal.as_text import visible
from lmtrain.terminal.options import Number, OptionParser, WholeNumber, run_name

if TYPE_CHECKING:
    from lmtrain.run.reading.loaded import LoadedModel

NOT_INTERACTIVE = ("prompt", "prompts", "count", "json", "logprobs")
ASKING = "prompt: "


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(prog="python -m lmtrain sample", description="Generates text with a trained model.")
    parser.add_argument("run", type=run_name, metavar="RUN_DIR", help="run directory of the model")
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="text to continue; repeatable (default: begin a new document)"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="file with a prompt in each line, or .jsonl with objects that have a prompt",
    )
    parser.add_argument(
        "--interactive",
        action="store_true",
        help="ask for prompts: Ctrl-C stops a text, Ctrl-D ends; the seed of each next prompt is one higher",
    )
    parser.add_argument(
        "--tokens", type=WholeNumber(1), default=200, help="number of tokens to generate (default: 200)"
    )
    parser.add_argument("--count", type=WholeNumber(1), default=1, help="number of texts to generate (default: 1)")
    parser.add_argument(
        "--temperature",
        type=Number(at_least=0, at_most=1000),
        default=0.8,
        help="randomness of the choice; 0 = always the likeliest token (default: 0.8)",
    )
    parser.add_argument(
        "--top-k",
        type=WholeNumber(),
        default=50,
        help="choose each token among the K likeliest; 0 = among all (default: 50)",
    )
    parser.add_argument(
        "--top-p",
        type=Number(at_least=1e-6, at_most=1),
        default=1.0,
        help="choose among the fewest likeliest tokens with this probability together (default: 1, all)",
    )
    parser.add_argument(
        "--min-p",
        type=Number(at_least=0, at_most=1),
        default=0.0,
        help="leave out tokens less likely than this share of the likeliest one's probability (default: 0)",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=Number(at_least=0.01, at_most=100),
        default=1.0,
        help="above 1, tokens that the text already has become less likely (default: 1)",
    )
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--ignore-end", action="store_true", help="go on after an end of text")
    parser.add_argument("--batch-size", type=WholeNumber(1), default=8, help="texts computed at once (default: 8)")
    parser.add_argument(
        "--no-cache", action="store_true", help="compute earlier tokens again for each token; the same text, slower"
    )
    parser.add_argument(
        "--logprobs", type=WholeNumber(), metavar="N", help="with --json, log probabilities of the N likeliest tokens"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per text")
    parser.add_argument(
        "--seed", type=WholeNumber(), default=0, help="random seed; the same seed gives the same text (default: 0)"
    )
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step number (default: best)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add_tokenizer_option(parser)
    parser.add_argument("--trust", action="append", default=[], metavar="TARGET", help=TRUST_HELP)
    options = parser.read(arguments)
    given = [name for name in NOT_INTERACTIVE if getattr(options, name) is not parser.get_default(name)]
    if options.interactive and given:
        raise ConfigError(f"--interactive: asks for prompts and shows texts itself; leave out --{', --'.join(given)}")
    if options.logprobs is not None and not options.json:
        raise ConfigError("--logprobs: are part of the JSON output; give --json, too")
    options.run = find_run(named := options.run)
    if not (options.run / "config.yaml").is_file():
        raise ConfigError(why_no_run(options.run))
    if options.run != named:
        print(visible(f"run {options.run}"), file=sys.stderr)

    # Imported only after the arguments are checked: these load torch.
    from lmtrain.run.reading.loaded import load_model

    loaded = load_model(options.run, options.checkpoint, options.device, options.trust)
    loaded = with_tokenizer(loaded, options.tokenizer)
    if loaded.tokenizer is None:
        raise ConfigError(f"{options.run}: {NO_TOKENIZER}")
    settings: dict[str, Any] = {
        "tokens": options.tokens,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "repetition_penalty": options.repetition_penalty,
        "stop": options.stop,
        "ignore_end": options.ignore_end,
        "cache": not options.no_cache,
    }
    if options.interactive:
        return _converse(loaded, options.seed, settings)
    prompts = _prompts(options.prompt, options.prompts)
    single = len(prompts) * options.count == 1 and not options.json
    if single:
        print(visible(prompts[0]), end="", flush=True)
    samples = loaded.samples(
        prompts,
        **settings,
        count=options.count,
        seed=options.seed,
        batch_size=options.batch_size,
        logprobs=options.logprobs,
        show=_show if single else None,
    )
    if single:
        print()
        return 0
    for number, sample in enumerate(samples):
        if options.json:
            print(json.dumps({**vars(sample), "checkpoint": loaded.step}))
            continue
        if number:
            print("-" * 60)
        print(visible(sample.prompt + sample.text))
    return 0


def _show(piece: str) -> None:
    print(visible(piece), end="", flush=True)


def _converse(loaded: "LoadedModel", seed: int, settings: Mapping[str, Any]) -> int:
    """Continue the prompts that the user types, until the end of the input."""
    with suppress(ImportError):  # with it, `input` can edit lines and repeat earlier ones
        importlib.import_module("readline")
    while True:
        try:
            prompt = input(ASKING)
        except EOFError:
            print()
            break
        except KeyboardInterrupt:
            print()
            continue
        try:
            print(visible(prompt), end="", flush=True)
            loaded.samples([prompt], **settings, seed=seed, show=_show)
            print()
            seed += 1
        except KeyboardInterrupt:
            print(" [stopped]")
            seed += 1
        except ConfigError as error:
            print(f"\nerror: {error}")
    return 0


def _prompts(given: Sequence[str] | None, file: Path | None) -> list[str]:
    """Return the prompts of the options; an empty one begins a new document.

    Raises:
        ConfigError: The file can't be read, or has no prompt.
    """
    prompts = [*(given or [])]
    if file is not None:
        try:  # not splitlines(), which also cuts at line ends that JSON may have inside a text
            lines = file.read_text(encoding="utf-8-sig").split("\n")
        except OSError as error:
            raise ConfigError(f"--prompts {file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"--prompts {file}: not UTF-8 text ({error.reason} at byte {error.start:,})") from error
        if not any(lines):
            raise ConfigError(f"--prompts {file}: has no prompt; write one in each line")
        as_json = file.suffix == ".jsonl"
        prompts += [
            _prompt_in(line, f"--prompts {file}, line {number}") if as_json else line
            for number, line in enumerate(lines, start=1)
            if line
        ]
    return prompts or [""]


def _prompt_in(line: str, where: str) -> str:
    """Return the prompt of a line of JSON; raise ConfigError if it has none."""
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ConfigError(f'{where}: not JSON ({error}); write {{"prompt": "…"}} in each line') from error
    prompt = found.get("prompt") if isinstance(found, dict) else None
    if not isinstance(prompt, str):
        raise ConfigError(f'{where}: no text under "prompt"; write {{"prompt": "…"}} in each line')
    return prompt
