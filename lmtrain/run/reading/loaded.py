"""Loads the model of a finished or running run, to generate text with it and to evaluate it."""

import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lmtrain.checkpoint.files import load_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.checkpoint.kept_choices import kept_choices
from lmtrain.checkpoint.snapshot import train_state
from lmtrain.checkpoint.steps import CHECKPOINTS, chosen_step
from lmtrain.config.build import build, raising_config_errors
from lmtrain.config.recorded.run_names import why_no_run
from lmtrain.config.recorded.trust import check_trust, read_saved
from lmtrain.config.token_files import token_folders
from lmtrain.data.meta import check_tokenizer
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE, StoredTokenizer, load_tokenizer
from lmtrain.errors import BrokenCheckpointError, ConfigError
from lmtrain.files.links import refuse_links
from lmtrain.hardware.cpu_speed import cpu_speed
from lmtrain.hardware.work import NO_WORK
from lmtrain.loop.evaluation import evaluate, perplexity
from lmtrain.loop.evaluation_weights import load_weights_to_use
from lmtrain.parts import build_model, build_system, check_model_size
from lmtrain.run.directory import RUN_FILES
from lmtrain.run.process_state import using_torch
from lmtrain.run.reading.run_data import data_node
from lmtrain.sample.choice import Choice, random_numbers
from lmtrain.sample.generate import Continuation, continue_texts
from lmtrain.sample.text import GrowingText, Sample, as_sample
from lmtrain.system import DTYPE_KEY, System


@dataclass(frozen=True)
class Evaluation:
    """The loss of a model over every token of a split.

    Attributes:
        split: The name of the split.
        tokens: The number of tokens in the split.
        loss: The mean loss in nats per token.
        perplexity: exp(loss).
        bits_per_byte: The loss in bits per byte of text; None if the data does not record the size of its text.
    """

    split: str
    tokens: int
    loss: float
    perplexity: float
    bits_per_byte: float | None


@dataclass(frozen=True)
class LoadedModel:
    """The model of a run at one checkpoint, on a device and in evaluation mode. `Run.load` returns it.

    Attributes:
        directory: The directory of the run.
        config: The resolved config of the run.
        model: The model: `logits, loss = model(tokens, targets)`, with token ids of shape (B, T).
        tokenizer: The tokenizer of the run's data; None if it has none.
        system: Device, number format and threads.
        step: The number of optimizer steps after which the checkpoint was saved.
    """

    directory: Path
    config: DictConfig = field(repr=False)
    model: nn.Module
    tokenizer: StoredTokenizer | None = field(repr=False)
    system: System = field(repr=False)
    step: int

    def sample(
        self,
        prompt: str = "",
        *,
        tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = 50,
        seed: int | torch.Generator = 0,
        **options: Any,
    ) -> str:
        """Generate a text, as `python -m lmtrain sample` does.

        Args:
            prompt: The text to continue; empty to begin a new document.
            tokens: The number of tokens to generate.
            temperature: 0 always chooses the likeliest token; higher values give more varied text.
            top_k: Choose among the `top_k` likeliest tokens; None or 0 for all.
            seed: The same seed gives the same text; a generator gives a new text at each call.
            options: Further options of `samples`.

        Returns:
            The prompt and its continuation.

        Raises:
            ConfigError: The run has no tokenizer, the prompt has characters that the tokenizer does not know, or a
                number is out of range.
        """
        if "count" in options:
            raise ConfigError("count: sample returns one text; use samples for several")
        if isinstance(seed, torch.Generator):
            seed = int(torch.randint(2**62, (), generator=seed))
        (found,) = self.samples([prompt], tokens=tokens, temperature=temperature, top_k=top_k, seed=seed, **options)
        return found.prompt + found.text

    def samples(
        self,
        prompts: str | Sequence[str],
        *,
        count: int = 1,
        tokens: int = 200,
        stop: str | Sequence[str] = (),
        ignore_end: bool = False,
        seed: int = 0,
        batch_size: int = 8,
        cache: bool = True,
        logprobs: int | None = None,
        show: Callable[[str], None] | None = None,
        **choice: Any,
    ) -> list[Sample]:
        """Generate `count` texts for each prompt, in order. A text does not depend on the others.

        Args:
            prompts: The text or texts to continue; an empty one begins a new document.
            count: Texts for each prompt.
            tokens: The number of tokens of each text at most.
            stop: A text is cut before this one, or before the first of several.
            ignore_end: Go on after an end of text.
            seed: The same seed gives the same texts.
            batch_size: Number of texts that are computed at once.
            cache: Keep keys and values of earlier tokens, if the model can do so. The text is the same without.
            logprobs: Number of likeliest tokens whose log probabilities are kept for each token.
            show: Called with each new piece of text; the texts are computed one after the other then.
            choice: `temperature`, `top_k`, `top_p`, `min_p` and `repetition_penalty`, see `lmtrain.sample.choice`.

        Raises:
            ConfigError: as of `sample`.
        """
        numbers = (("tokens", tokens, 1), ("count", count, 1), ("batch_size", batch_size, 1), ("seed", seed, 0))
        for name, value, least in (*numbers, ("logprobs", logprobs or 0, 0)):
            if not hasattr(value, "__index__") or value < least:
                raise ConfigError(f"{name}={value}: must be a whole number of at least {least}")
        if unknown := choice.keys() - {each.name for each in fields(Choice)}:
            raise ConfigError(f"{min(unknown)}: no such option of samples")
        prompts = [prompts] if isinstance(prompts, str) else prompts
        stop = [stop] if isinstance(stop, str) else stop
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise ConfigError(f"{self.directory}: has no {TOKENIZER_FILE}, because its data had none")
        with raising_config_errors():  # the prompt may contain characters that the run's text did not have
            how = Choice(**choice)
            encoded = [tokenizer.encode(prompt) or [tokenizer.end_of_text or 0] for prompt in prompts]
        order = [(prompt, number) for prompt in range(len(prompts)) for number in range(count)]
        texts = [Continuation(encoded[prompt], random_numbers(seed, number, tokens)) for prompt, number in order]
        grown = {id(text): GrowingText(tokenizer, text.prompt, stop) for text in texts}

        def stops(text: Continuation) -> bool:
            growing = grown[id(text)]
            growing.ids.append(text.ids[-1]) if not (stop or show) else growing.add(text.ids[-1])
            if show:
                show(growing.piece())
            return growing.found

        found: list[Sample] = []
        for group in [[text] for text in texts] if show else [texts]:
            with self.torch_as_in_the_run():
                continue_texts(
                    self.model,
                    group,
                    how,
                    block_size=self.config.data.block_size,
                    vocab_size=tokenizer.vocab_size,
                    device=self.system.device,
                    batch_size=batch_size,
                    end_of_text=None if ignore_end else tokenizer.end_of_text,
                    cached=cache,
                    logprobs=logprobs,
                    stops=stops,
                )
            for text in group:
                prompt, number = order[len(found)]
                found.append(as_sample(tokenizer, prompts[prompt], text, grown[id(text)], seed, number))
                if show:
                    show(grown[id(text)].piece(last=True))
        return found

    def evaluate(self, split: str = "val", *, data: str | Path | None = None) -> Evaluation:
        """Compute the loss over a whole split, as `python -m lmtrain evaluate` does.

        Args:
            split: `train`, `val` or the name of any other `.bin` file in the data folder.
            data: Another folder of token files; None for the run's own data.

        Raises:
            ConfigError: There is no such data, or it was made with another tokenizer.
        """
        folder = None if data is None else Path(data).expanduser()
        node = OmegaConf.create(data_node(self.config.data, folder, self.directory))
        with self.torch_as_in_the_run(), raising_config_errors():
            for folder in token_folders(node).values():
                check_tokenizer(folder, beside=self.directory)
            loader = build(node, split=split, seed=self.config.seed)
            loss = evaluate(self.model, self.model, loader.whole_split(), self.system)
        bits_per_byte = loss / math.log(2) / loader.bytes_per_token if loader.bytes_per_token else None
        return Evaluation(split, loader.total_tokens, loss, perplexity(loss), bits_per_byte)

    @contextmanager
    def torch_as_in_the_run(self) -> Iterator[None]:
        """Let torch compute with the settings of the run in the `with` block."""
        with using_torch():
            _system(self.config, str(self.system.device), self.directory)
            yield


def load_model(
    run_dir: Path, which: str, device: str, trusted: Collection[str] = (), *, option: str = "--trust "
) -> LoadedModel:
    """Load a checkpoint of a run, which may still be training.

    Args:
        run_dir: The run directory.
        which: `best`, `latest` or a step number.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        trusted: Names of classes and functions that may be imported in addition to those that `check_trust` allows.
        option: The option with which the caller trusts a name, for the message.

    Raises:
        ConfigError: The run or checkpoint does not exist or is broken, or its config names code that is not trusted.
    """
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(why_no_run(run_dir))
    with raising_config_errors():
        refuse_links(run_dir, (*RUN_FILES, CHECKPOINTS), below=[CHECKPOINTS])
    checkpoints = CheckpointFolder.of_run(run_dir)
    steps = checkpoints.steps()
    if not steps:
        if broken := checkpoints.broken():
            raise ConfigError(f"{run_dir}: has no intact checkpoint ({', '.join(broken)})")
        if (run_dir / "result.json").is_file():
            raise ConfigError(f"{run_dir}: has no checkpoint; the run has ended without one")
        raise ConfigError(f"{run_dir}: has no checkpoint yet; wait until the run has saved one")
    with raising_config_errors():
        path = checkpoints.at(chosen_step(run_dir, which))
    if not path.is_dir():
        raise ConfigError(f"{run_dir}: no checkpoint {which!r}; there are steps {', '.join(map(str, steps))}")
    cfg = read_saved(run_dir / "config.yaml")
    check_trust(cfg, trusted, run_dir, option=option)
    for key in ("model", "data", "system"):
        if not isinstance(cfg.get(key), DictConfig):
            raise ConfigError(f"{run_dir / 'config.yaml'}: has no section {key}; the file is not that of a run")
    with raising_config_errors():
        check_model_size(cfg, [path])
        system = _system(cfg, device, run_dir)
        model = build_model(cfg)
        has_tokenizer = (run_dir / TOKENIZER_FILE).is_file()
        tokenizer = load_tokenizer(run_dir) if has_tokenizer else None
    try:
        loaded = load_checkpoint(path)
        step = train_state(loaded).step
        load_weights_to_use(model, loaded.tensors)
    except (BrokenCheckpointError, RuntimeError, ValueError) as error:
        others = ", ".join(str(other) for other in steps if checkpoints.at(other) != path)
        way_out = f"; choose another checkpoint: {others}" if others else ""
        raise ConfigError(f"{path}: {error}{way_out}") from error
    return LoadedModel(run_dir, cfg, model.to(system.device).eval(), tokenizer, system, step)


def saved_model(cfg: DictConfig, checkpoints: CheckpointFolder, system: System) -> nn.Module:
    """Return the model of a run's newest checkpoint on a device, for a run whose processes have only parts of it."""
    model = build_model(cfg)
    load_weights_to_use(model, load_checkpoint(checkpoints.at(checkpoints.steps()[-1])).tensors)
    return model.to(system.device).eval()


def _system(cfg: DictConfig, device: str, run_dir: Path) -> System:
    """Build the system for a run's model, which computes in the run's number format if this CPU is fast in it."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ConfigError(f"device {device}: must be auto, cpu, cuda, or one GPU, such as cuda:1")
    changes = {"dtype": "bfloat16"} if cfg.system.get("dtype") == "float8" else {}
    system = build_system(cfg, device=device, compile=False, **changes)
    kept = kept_choices(run_dir)
    if kept.get(DTYPE_KEY) == "bfloat16" and system.device.type == "cpu" and cpu_speed().bfloat16_gain >= 1:
        system.choose(NO_WORK, kept)
    return system
