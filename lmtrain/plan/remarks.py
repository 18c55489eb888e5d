"""Finds likely mistakes in a planned run; each function finds one and names the key and the way out."""

import math
from collections.abc import Mapping, Sequence

from lmtrain.plan import hardware
from lmtrain.plan.facts import Remark, RunFacts
from lmtrain.plan.schedule_remarks import SCHEDULE_REMARKS
from lmtrain.terminal.units import duration, si

FEW_TOKENS, MANY_TOKENS = 5.0, 2000.0  # per parameter; about 20 are compute-optimal
MANY_EPOCHS = 4.0  # up to here, repeated tokens are worth nearly as much as new ones (Muennighoff et al. 2023)
VERY_MANY_EPOCHS = 16.0  # from here on, repeated tokens are worth almost nothing


def remarks(facts: RunFacts) -> list[str]:
    """Return all remarks about a run, with certain mistakes first."""
    found = [*(remark(facts.schedule) for remark in SCHEDULE_REMARKS), *(remark(facts) for remark in RUN_REMARKS)]
    return [text for text in found if text is not None]


def data_unseen(facts: RunFacts) -> str | None:
    unseen = {name: seen for name, seen in facts.epochs.items() if seen < 0.995}
    if not unseen:
        return None
    seen = ", ".join(f"{1 - share:.0%} of {name}" for name, share in unseen.items())
    way_out = ""
    if len(facts.epochs) == 1 and facts.steps_per_epoch is not None:
        needed = facts.max_steps + math.ceil((1 - max(unseen.values())) * facts.steps_per_epoch)
        way_out = f"; trainer.max_steps={needed} is one epoch"
    verb = "is" if len(unseen) == 1 else "are"
    return f"trainer.max_steps={facts.max_steps}: {seen} {verb} never seen{way_out}; ignore this if it is intended"


def data_repeated(facts: RunFacts) -> str | None:
    often = _repeated(facts)
    if not often:
        return None
    # If the model is too large for its tokens, fewer steps would make that worse: see `few_tokens`.
    fewer = "a smaller model" if facts.tokens_per_parameter < FEW_TOKENS else "fewer steps"
    seen = ", ".join(f"{name} {times:.3g} times" for name, times in often.items())
    return (
        f"trainer.max_steps={facts.max_steps}: sees {seen}; beyond four epochs, repeated tokens teach less and less "
        f"(Muennighoff et al. 2023); use more data, {fewer}, or model.dropout=0.1 against overfitting"
    )


def data_repeated_far_too_often(epochs: Mapping[str, float], max_steps: int) -> str | None:
    """Return a remark that is certain enough for a warning at the start of training, for a model without dropout."""
    often = {name: seen for name, seen in epochs.items() if seen > VERY_MANY_EPOCHS}
    if not often:
        return None
    seen = ", ".join(f"{name} {times:.3g} times" for name, times in often.items())
    return (
        f"trainer.max_steps={max_steps}: sees {seen}; beyond {VERY_MANY_EPOCHS:.0f} epochs, repeated tokens teach "
        "almost nothing (Muennighoff et al. 2023); use more data, fewer steps, or model.dropout=0.1 against overfitting"
    )


def _repeated(facts: RunFacts) -> dict[str, float]:
    return {name: seen for name, seen in facts.epochs.items() if seen > MANY_EPOCHS}


def batch_larger_than_data(facts: RunFacts) -> str | None:
    if facts.steps_per_epoch is None or facts.steps_per_epoch >= 1:
        return None
    _, largest = facts.range_of_step_tokens
    return (
        f"a step has {largest:,} tokens, more than all of the data, so it sees some blocks twice; "
        "lower data.batch_size or trainer.gradient_accumulation_steps"
    )


def few_tokens(facts: RunFacts) -> str | None:
    if facts.tokens_per_parameter >= FEW_TOKENS:
        return None
    fact = f"{facts.tokens_per_parameter:.2g} tokens per parameter, but about 20 are compute-optimal"
    fact += " (Hoffmann et al. 2022)"
    smaller = "a smaller model (model.d_model, model.n_layer)"
    if _repeated(facts):
        return f"{fact}; {smaller} is enough for this data, as more steps would only repeat it; or use more data"
    return f"{fact}; {smaller} with more steps (trainer.max_steps) reaches a lower loss with the same FLOPs"


def many_tokens(facts: RunFacts) -> str | None:
    if facts.tokens_per_parameter <= MANY_TOKENS:
        return None
    return (
        f"{si(facts.tokens_per_parameter)} tokens per parameter, but about 20 are compute-optimal (Hoffmann et al. "
        "2022); a larger model (model.d_model, model.n_layer) reaches a lower loss with the same FLOPs"
    )


def never_evaluated_before_the_end(facts: RunFacts) -> str | None:
    every = facts.intervals.evaluation
    if every is None or _first_after(facts.first_step, every) < facts.max_steps:
        return None
    return (
        f"trainer.eval_interval={every}: the run is evaluated only at its end, so the best checkpoint is the last one; "
        f"use {max(facts.steps // 10, 1)}"
    )


def evaluation_outweighs_training(facts: RunFacts) -> str | None:
    every, limit = facts.intervals.evaluation, facts.intervals.eval_tokens
    known = [tokens for tokens in (limit, facts.val_tokens) if tokens is not None]
    if every is None or not known:
        return None
    evaluated = min(known)
    between = min(every, facts.steps) * facts.mean_step_tokens
    if evaluated / 3 <= between:  # a forward takes a third of a training step
        return None
    enough = max(int(0.3 * between / facts.micro_batch_tokens), 1) * facts.micro_batch_tokens
    return (
        f"trainer.eval_interval={every}: an evaluation of {si(evaluated)} tokens takes longer than training on the "
        f"{si(between)} tokens before it; with trainer.eval_tokens={enough} it takes a tenth of the training time"
    )


def val_smaller_than_a_batch(facts: RunFacts) -> str | None:
    if facts.val_tokens is None or facts.val_tokens >= facts.micro_batch_tokens:
        return None
    return (
        f"the val split has {facts.val_tokens:,} tokens, less than one micro-batch of {facts.micro_batch_tokens:,}, "
        "so its loss is unreliable; hold out more (prepare.holdout.val_share)"
    )


def never_logged_in_between(facts: RunFacts) -> str | None:
    every = facts.intervals.log
    if every is None or _first_after(facts.first_step, every) < facts.max_steps or facts.steps < 3:
        return None
    better = max(facts.steps // 100, 1)
    return f"trainer.log_interval={every}: only the first and the last step are logged; use {better}"


def crash_loses_much(facts: RunFacts) -> str | None:
    every, seconds = facts.intervals.checkpoint, facts.step_seconds
    if every is None or seconds is None:
        return None
    lost = min(every, facts.steps) * seconds
    if lost < hardware.LONG_WITHOUT_SAVE_S or every == 1:
        return None
    better = max(int(hardware.LONG_WITHOUT_SAVE_S / 2 / seconds), 1)
    return f"trainer.checkpoint_interval={every}: a crash loses up to {duration(lost)} of work; use {better}"


def saving_dominates(facts: RunFacts) -> str | None:
    every = facts.intervals.checkpoint
    if every is None or facts.step_seconds is None or facts.checkpoint_bytes is None:
        return None
    saving = facts.checkpoint_bytes / hardware.SAVE_BYTES_PER_SECOND
    if facts.steps <= every or saving < every * facts.step_seconds:
        return None
    return (
        f"trainer.checkpoint_interval={every}: writing a checkpoint takes about {duration(saving)}, longer than the "
        f"{every} steps in between, and training waits for it; use {int(5 * saving / facts.step_seconds) + 1}"
    )


def disk_too_small(facts: RunFacts) -> str | None:
    if facts.disk_needed is None or facts.disk_free is None or facts.disk_needed <= facts.disk_free:
        return None
    return (
        f"checkpoints need {si(facts.disk_needed)}B, but only {si(facts.disk_free)}B are free; use another disk "
        "(hydra.run.dir), or keep fewer checkpoints (trainer.keep_checkpoints, trainer.keep_every=null)"
    )


def memory_too_small(facts: RunFacts) -> str | None:
    if facts.memory_needed is None or facts.memory_free is None or facts.memory_needed <= facts.memory_free:
        return None
    smaller = ""
    if facts.batch_size and facts.batch_size > 1:
        half = facts.batch_size // 2
        smaller = f"; data.batch_size={half} with twice the trainer.gradient_accumulation_steps needs less"
    if facts.recompute in ("none", "attention") and facts.activations:
        smaller += (
            f"; model.recompute=layer keeps a small part of the {si(facts.activations)}B of activations, for about a "
            "third more time"
        )
    return f"a step needs {si(facts.memory_needed)}B of memory, but only {si(facts.memory_free)}B are free{smaller}"


def vocabulary_unaligned(facts: RunFacts) -> str | None:
    if facts.device != "cuda" or facts.vocab_size is None or facts.vocab_size % 64 == 0:
        return None
    return (
        f"model.vocab_size={facts.vocab_size}: not a multiple of 64, which slows down a GPU's largest matrix product; "
        f"use {-(-facts.vocab_size // 64) * 64}, as ids above the data's largest are never used"
    )


def heads_unaligned(facts: RunFacts) -> str | None:
    if facts.device != "cuda" or not facts.d_model or not facts.n_head or facts.d_model // facts.n_head % 8 == 0:
        return None
    return (
        f"model.n_head={facts.n_head}: heads are {facts.d_model // facts.n_head} wide, but a GPU's fast attention "
        "needs a multiple of 8; 64 or 128 are usual"
    )


def dtype_without_hardware(facts: RunFacts) -> str | None:
    if facts.speed_to_float32 is None or facts.speed_to_float32 >= 0.8:
        return None
    return (
        f"system.dtype={facts.dtype}: this CPU multiplies it at {facts.speed_to_float32:.2g} times the speed of "
        "float32; use system.dtype=float32"
    )


def gpu_left_idle(facts: RunFacts) -> str | None:
    return "system.device=cpu: this machine has a GPU; system.device=auto uses it" if facts.idle_gpu else None


def positions_never_trained(facts: RunFacts) -> str | None:
    if not facts.learned_positions or facts.model_block_size is None or facts.model_block_size <= facts.block_size:
        return None
    return (
        f"model.block_size={facts.model_block_size}: positions from {facts.block_size} on have learned embeddings that "
        f"are never trained, because data.block_size={facts.block_size}; make the two equal"
    )


def _first_after(step: int, every: int) -> int:
    """Return the first multiple of an interval after a step."""
    return (step // every + 1) * every


RUN_REMARKS: Sequence[Remark] = (
    memory_too_small,
    disk_too_small,
    gpu_left_idle,
    dtype_without_hardware,
    batch_larger_than_data,
    data_unseen,
    data_repeated,
    few_tokens,
    many_tokens,
    never_evaluated_before_the_end,
    evaluation_outweighs_training,
    val_smaller_than_a_batch,
    never_logged_in_between,
    crash_loses_much,
    saving_dominates,
    positions_never_trained,
    vocabulary_unaligned,
    heads_unaligned,
)
