"""Checks that killed runs continue to the same bits, as `verify-resume` does, in small."""

import contextlib
import random
from collections.abc import Iterator

from lmtrain.verify.device.finding import Finding, judged
from lmtrain.verify.device.setting import SMALL, SMALL_MODELS, Setting
from lmtrain.verify.verification import BitsDifferError, Verification

KILLS = 2
SEED = 1
STEPS = {"max_steps": 6, "log_interval": 1, "checkpoint_interval": 2, "eval_interval": 3, "eval_batches": 1}


def after_kills(setting: Setting) -> Iterator[Finding]:
    """Run a config undisturbed, then kill and resume it, and compare all checkpoints and metrics."""
    own = (*SMALL_MODELS["llama"], *SMALL, "system.compile=false", "model.dropout=0.1")
    setting.small("llama")  # makes the token files
    overrides = [*setting.run_overrides(), *own, *(f"trainer.{key}={value}" for key, value in STEPS.items())]
    place = setting.folder / "resume"
    place.mkdir()
    verification = Verification(place, overrides, random.Random(SEED), keep_checkpoints=2, keep=True)
    try:
        with contextlib.closing(verification):
            verification.run_undisturbed()
            while len(verification.kills) < KILLS:
                verification.run_round(KILLS - len(verification.kills), lambda _: None)
    except BitsDifferError as error:
        yield judged(False, str(error), differences=[str(each) for each in error.differences[:5]])
        return
    undisturbed = verification.undisturbed
    assert undisturbed is not None
    yield judged(
        undisturbed.compared_checkpoints > 0,
        f"{len(verification.kills)} kills ({', '.join(kill.phase for kill in verification.kills)}); "
        f"{undisturbed.compared_checkpoints} checkpoints and {undisturbed.compared_lines} metric lines have equal bits",
        phases=[kill.phase for kill in verification.kills],
    )
