"""`python -m lmtrain sample RUN_DIR --prompt …`: text from a checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from lmtrain.commands.evaluate import TRUST_HELP
from lmtrain.config.build import raising_config_errors
from lmtrain.errors import ConfigError
from lmtrain.terminal.options import Number, OptionParser, WholeNumber


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(prog="python -m lmtrain sample", description="Writes text with a trained model.")
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="run directory")
    parser.add_argument("--prompt", default="", help="the text to continue (default: the start of a document)")
    parser.add_argument("--tokens", type=WholeNumber(1), default=200, help="how many to add (default: 200)")
    parser.add_argument("--count", type=WholeNumber(1), default=1, help="how many texts (default: 1)")
    parser.add_argument(
        "--temperature",
        type=Number(at_least=0, at_most=1000),
        default=0.8,
        help="0 = always the likeliest (default: 0.8)",
    )
    parser.add_argument("--top-k", type=WholeNumber(), default=50, help="choose among so many; 0 = all (default: 50)")
    parser.add_argument("--seed", type=WholeNumber(), default=0, help="the same seed gives the same text (default: 0)")
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step (default: best)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--trust", action="append", default=[], metavar="TARGET", help=TRUST_HELP)
    options = parser.read(arguments)
    if not (options.run / "config.yaml").is_file():
        raise ConfigError(f"{options.run}: not a run directory (no config.yaml)")

    # After the arguments are understood: these import torch.
    import torch

    from lmtrain.model.generate import generate
    from lmtrain.run.loaded import load_run

    loaded = load_run(options.run, options.checkpoint, options.device, options.trust)
    if loaded.tokenizer is None:
        raise ConfigError(f"{options.run}: has no tokenizer.json, since its data had none")
    with raising_config_errors():  # characters that the run's text did not have
        ids = loaded.tokenizer.encode(options.prompt) or [loaded.tokenizer.end_of_text or 0]
    prompt = torch.tensor(ids, device=loaded.system.device)
    generator = torch.Generator().manual_seed(options.seed)
    for _ in range(options.count):
        tokens = generate(
            loaded.model,
            prompt,
            options.tokens,
            block_size=loaded.cfg.data.block_size,
            vocab_size=loaded.tokenizer.vocab_size,
            temperature=options.temperature,
            top_k=options.top_k or None,
            generator=generator,
        )
        print(loaded.tokenizer.decode(tokens.tolist()))
        if options.count > 1:
            print("-" * 60)
    return 0
