"""Divides global batches into micro-batches: `trainer.global_batch_size` and `data.batch_size=auto`.

With a global batch, the number of micro-batches follows from the size of one. A size of `auto` is found later, by trial
at the start of the run, and then recorded in the run's config. A micro-batch must divide the batches of every step, if
`trainer.batch_schedule` changes them.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import gcd
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmtrain.errors import ConfigError
from lmtrain.loop.step_sizes import BatchSizes

AUTO = "auto"
FSDP = "lmtrain.parallel.choices.fsdp"
SHARING = "parallel=fsdp"
SIZE, GLOBAL, ACCUMULATION = "data.batch_size", "trainer.global_batch_size", "trainer.gradient_accumulation_steps"
BATCHES, LENGTHS = "trainer.batch_schedule", "trainer.length_schedule"
# Schedules of the trainer, and what the first number of their points is.
SCHEDULES = {
    BATCHES: "tokens",
    LENGTHS: "tokens",
    "trainer.weight_decay_schedule": "step",
    "trainer.momentum_schedule": "step",
}


def is_auto(config: Mapping[str, Any]) -> bool:
    """Return whether the config leaves the size of a micro-batch to a trial."""
    data = config.get("data")
    return isinstance(data, Mapping) and data.get("batch_size") == AUTO


def refuse_auto(config: Mapping[str, Any]) -> None:
    """Raise ConfigError if the config leaves the size of a micro-batch to a trial, which only a run makes."""
    if is_auto(config):
        raise ConfigError(f"{SIZE}={AUTO}: only a run finds the number, when it starts; give a number")


def derive_accumulation(root: Mapping[str, Any]) -> dict[str, str]:
    """Set the number of micro-batches of a checked config with a global batch, in place.

    While the size of a micro-batch is `auto`, the number is null. Return the problems by key; each text follows its
    key.
    """
    data, trainer = root.get("data"), root.get("trainer")
    if not isinstance(data, dict) or not isinstance(trainer, dict):
        return {}
    size, whole = data.get("batch_size"), trainer.get("global_batch_size")
    if whole is None:
        if size != AUTO:
            return {}
        if "global_batch_size" not in trainer:
            return {SIZE: "=auto: works only with lmtrain's own trainer; give a number"}
        return {SIZE: f"=auto: needs {GLOBAL}, the sequences per optimizer step; give that too, or a number"}
    if size == AUTO:
        trainer["gradient_accumulation_steps"] = None
    elif isinstance(size, int) and "gradient_accumulation_steps" in trainer:
        if whole % size:
            return {GLOBAL: f"={whole}: is not a multiple of {SIZE}={size}; {_nearest(whole, size)}"}
        trainer["gradient_accumulation_steps"] = whole // size
    return {}


def batch_sizes(cfg: Mapping[str, Any]) -> BatchSizes:
    """Return the sequences of each optimizer step of a checked config; a user's parts may lack some of the keys."""
    data, trainer = cfg["data"], cfg["trainer"]
    sequences = trainer.get("global_batch_size")
    if sequences is None:
        sequences = (data.get("batch_size") or 1) * (trainer.get("gradient_accumulation_steps") or 1)
    points = [(tokens, number) for tokens, number in trainer.get("batch_schedule") or ()]
    return BatchSizes(sequences, data.get("block_size") or 1, points)


def schedule_problems(root: Mapping[str, Any]) -> dict[str, str]:
    """Return the problems of the trainer's schedules by key; each text follows its key."""
    data, trainer = root.get("data"), root.get("trainer")
    if not isinstance(data, dict) or not isinstance(trainer, dict):
        return {}
    problems = {}
    for key, unit in SCHEDULES.items():
        points = trainer.get(key.removeprefix("trainer.")) or []
        for (before, _), (after, _) in pairwise(points):
            if after <= before:
                problems[key] = f": has {unit} {after} after {unit} {before}; the first numbers must increase"
    size, block_size = data.get("batch_size"), data.get("block_size")
    for tokens, number in trainer.get("batch_schedule") or []:
        if isinstance(size, int) and number % size:
            problems.setdefault(
                BATCHES,
                f": {number} sequences from {tokens} tokens on are not a multiple of {SIZE}={size}; "
                f"{_nearest(number, size)}",
            )
    for tokens, number in trainer.get("length_schedule") or []:
        if isinstance(block_size, int) and block_size % number:
            nearest = [*(each for each in divisors(block_size) if each < number)][-1:]
            nearest += [each for each in divisors(block_size) if each > number][:1]
            problems.setdefault(
                LENGTHS,
                f": a length of {number} from {tokens} tokens on does not divide data.block_size={block_size}; "
                f"give {' or '.join(map(str, nearest))}",
            )
    return problems


def for_processes(cfg: DictConfig, processes: int) -> DictConfig:
    """Return a checked config whose micro-batches can be dealt out to so many processes, for the same global batches.

    It is the config itself if the number of micro-batches of each step is a multiple of the number of processes.
    Otherwise micro-batches become smaller, and there are more of them; evaluations read the same sequences as before.

    Raises:
        ConfigError: The sequences of a step are no multiple of the number of processes; the message says which are.
    """
    if processes == 1:
        return cfg
    size, sizes = cfg.data.batch_size, batch_sizes(cfg)
    steps = [sizes.sequences, *(number for _, number in sizes.points)]
    for sequences in steps:
        if sequences % processes:
            possible = divisors(gcd(*steps))
            nearest = [*[each for each in possible if each < processes][-1:]]
            nearest += [each for each in possible if each > processes][:1]
            given = f"{GLOBAL}=" if cfg.trainer.get("global_batch_size") else f"{SIZE} × {ACCUMULATION} = "
            raise ConfigError(
                f"{given}{sequences}: the sequences of a step can't be shared by {processes} processes; start "
                f"{' or '.join(map(str, nearest))}, or give a multiple of {processes}"
            )
    if is_auto(cfg):  # a size is found that suits the processes
        if shares_model(cfg):
            raise ConfigError(f"{SIZE}={AUTO}: can't be found with {SHARING} for several processes; give a number")
        return cfg
    own = gcd(size, *(sequences // processes for sequences in steps))
    if own == size:
        return cfg
    cfg = cfg.copy()
    cfg.data.batch_size = own
    for key in ("gradient_accumulation_steps", "eval_batches", "eval_train_batches"):
        if cfg.trainer.get(key):
            cfg.trainer[key] = cfg.trainer[key] * (size // own)
    return cfg


def shares_model(cfg: Mapping[str, Any]) -> bool:
    """Return whether the processes of a run share its model, so that one of them alone can't compute."""
    return (cfg.get("parallel") or {}).get("_target_") == FSDP


def check_shards(cfg: Mapping[str, Any], processes: int) -> None:
    """Raise ConfigError if so many processes can't share copies of the model among `parallel.shards` each."""
    shards = (cfg.get("parallel") or {}).get("shards")
    if shards is None or processes % shards == 0:
        return
    if processes == 1:
        raise ConfigError(
            f"parallel.shards={shards}: there is one process; give parallel.world_size={shards} or a multiple of it, "
            "or parallel.shards=null"
        )
    nearest = [*[each for each in divisors(processes) if each < shards][-1:]]
    nearest += [each for each in divisors(processes) if each > shards][:1]
    raise ConfigError(
        f"parallel.shards={shards}: does not divide the {processes} processes; give {' or '.join(map(str, nearest))}, "
        "or null for all"
    )


def part_of_one_process(cfg: DictConfig, processes: int) -> DictConfig:
    """Return the config of a run that computes alone what one of so many processes computes of each step.

    The size of a micro-batch is `auto`, and the global batches are multiples of the number of processes.
    """
    if processes == 1:
        return cfg
    cfg = cfg.copy()
    cfg.trainer.global_batch_size //= processes
    if points := cfg.trainer.get("batch_schedule"):
        cfg.trainer.batch_schedule = [[tokens, number // processes] for tokens, number in points]
    if cfg.get("parallel"):
        cfg.parallel.world_size = None
    return cfg


def possible_sizes(cfg: Any) -> list[int]:
    """Return the sizes of a micro-batch that divide every global batch of a config, in ascending order."""
    return divisors(gcd(cfg.trainer.global_batch_size, *(number for _, number in batch_sizes(cfg).points)))


def divisors(number: int) -> list[int]:
    """Return the divisors of a number in ascending order."""
    small = [divisor for divisor in range(1, int(number**0.5) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


def _nearest(whole: int, size: int) -> str:
    """Return the nearest global batches and micro-batches that fit, in words."""
    multiples = [multiple for multiple in (whole // size * size, (whole // size + 1) * size) if multiple]
    sizes = divisors(whole)
    below, above = [each for each in sizes if each < size], [each for each in sizes if each > size]
    nearest = [*below[-1:], *above[:1]]
    return f"give {' or '.join(map(str, multiples))}, or {SIZE}={' or '.join(map(str, nearest))}"


def with_batch_size(cfg: DictConfig, size: int) -> DictConfig:
    """Return a copy of a checked config with this size of a micro-batch, and the number that follows from it."""
    cfg = cfg.copy()
    cfg.data.batch_size = size
    cfg.trainer.gradient_accumulation_steps = cfg.trainer.global_batch_size // size
    return cfg


def keep_found_size(config: Any, recorded: Mapping[str, Any]) -> None:
    """Replace `auto` by the size that a run has found and recorded in its `config.yaml`, in place.

    `config` is the config that the run was composed with, resolved or not. Nothing changes if the trial of the run had
    not ended.
    """
    found = (recorded.get("data") or {}).get("batch_size")
    if not is_auto(config) or type(found) is not int or found < 1:
        return
    config["data"]["batch_size"] = found
    trainer = config["trainer"]
    if trainer.get("gradient_accumulation_steps", 0) is None:  # in a config that was checked before
        trainer["gradient_accumulation_steps"] = trainer["global_batch_size"] // found


def refuse_given_accumulation(
    composed: DictConfig, overrides: Iterable[str], files: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raise ConfigError if a command line or a file sets the number of micro-batches that the global batch decides.

    A number from elsewhere, such as the default of the trainer, is replaced. `files` are the values of experiments for
    the trainer, by the name of the file.
    """
    trainer: Any = OmegaConf.to_container(composed).get("trainer")  # type: ignore[union-attr]
    whole = trainer.get("global_batch_size") if isinstance(trainer, dict) else None
    if whole is None:
        return
    given: Sequence[str] = [text for text in overrides if text.startswith(f"{ACCUMULATION}=")]
    given = given or [
        f"{name}: {ACCUMULATION}={values[ACCUMULATION]}"
        for name, values in files.items()
        if values.get(GLOBAL) is not None and values.get(ACCUMULATION) is not None
    ]
    if given:
        raise ConfigError(f"{given[-1]}: follows from {GLOBAL}={whole} and {SIZE}; leave it out, or give {GLOBAL}=null")
