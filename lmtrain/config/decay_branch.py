"""Gives a fork with a decay its length: it ends where the decay ends.

`fork=RUN step=2000 scheduler=wsd scheduler.decay_steps=500` decays at once, so it trains until step 2500.
"""

from collections.abc import Sequence

FORK, STEP, DECAY_STEPS = "fork", "step", "scheduler.decay_steps"
ENDS = ("trainer.max_steps", "scheduler.max_steps")


def end_of_branch(own: Sequence[str]) -> list[str]:
    """Return the override for the length of a fork, or nothing if it has no decay of its own, or names its length.

    Args:
        own: The overrides of the fork itself, with the step at which it begins.
    """
    given = {key.lstrip("+"): value for key, _, value in (text.partition("=") for text in own)}
    step, decay_steps = given.get(STEP, ""), given.get(DECAY_STEPS, "")
    numbers = step.isdecimal() and decay_steps.isdecimal() and int(decay_steps) > 0
    if FORK not in given or not numbers or any(key in given for key in ENDS):
        return []
    return [f"{ENDS[0]}={int(step) + int(decay_steps)}"]
