"""Finds likely mistakes in a learning-rate schedule."""

from functools import partial

from lmtrain.plan.facts import ScheduleFacts
from lmtrain.terminal.units import counted

LONG_WARMUP, VERY_LONG_WARMUP = 0.2, 0.5  # share of the run
SHORT_RUN = 100  # steps; a shorter run is a trial that is not expected to learn much
USUAL_RATES = (1e-6, 0.05)


def certain_mistakes(schedule: ScheduleFacts) -> list[str]:
    """Return the remarks that are certain enough for a warning at the start of training."""
    return [text for remark in CERTAIN_REMARKS if (text := remark(schedule)) is not None]


def warmup_never_ends(schedule: ScheduleFacts) -> str | None:
    if schedule.warmup_steps is None or schedule.warmup_steps < schedule.max_steps:
        return None
    return (
        f"scheduler.warmup_steps={schedule.warmup_steps}: the run ends after {schedule.max_steps:,} steps, while the "
        f"learning rate still rises; {_usual_warmup(schedule.max_steps)}"
    )


def rate_rises(schedule: ScheduleFacts) -> str | None:
    if schedule.lr is None or schedule.min_lr is None or schedule.min_lr <= schedule.lr:
        return None
    return (
        f"scheduler.min_lr={schedule.min_lr:g}: above the peak, optimizer.lr={schedule.lr:g}, so the learning rate "
        f"rises until the end; a tenth of the peak is usual, {schedule.lr / 10:g}"
    )


def schedule_ends_early(schedule: ScheduleFacts, tolerance: float = 0.0) -> str | None:
    end = schedule.schedule_steps
    if end is None or end >= schedule.max_steps * (1 - tolerance):
        return None
    return (
        f"scheduler.max_steps={end}: the schedule ends before the run, whose last "
        f"{counted(schedule.max_steps - max(end, schedule.first_step), 'step')} "
        f"have the final learning rate; without this setting it is trainer.max_steps={schedule.max_steps}"
    )


def schedule_ends_too_early(schedule: ScheduleFacts) -> str | None:
    """Remark on a schedule that ends clearly too early, unless it ended before the first step.

    A run that was resumed or forked after the end of its schedule keeps the final learning rate on purpose.
    """
    end = schedule.schedule_steps
    return None if end is not None and end <= schedule.first_step else schedule_ends_early(schedule, tolerance=0.1)


def schedule_ends_late(schedule: ScheduleFacts, tolerance: float = 0.0) -> str | None:
    end = schedule.schedule_steps
    if end is None or end <= schedule.max_steps * (1 + tolerance):
        return None
    return (
        f"scheduler.max_steps={end}: the run ends after {schedule.max_steps:,} steps, before the learning rate has "
        f"come down; without this setting it is trainer.max_steps={schedule.max_steps}"
    )


def warmup_is_long(schedule: ScheduleFacts) -> str | None:
    warmup, steps = schedule.warmup_steps, schedule.max_steps
    if warmup is None or warmup >= steps or warmup <= max(schedule.first_step, LONG_WARMUP * steps):
        return None
    return f"scheduler.warmup_steps={warmup}: {warmup / steps:.0%} of the run; {_usual_warmup(steps)}"


def _usual_warmup(max_steps: int) -> str:
    if max_steps < SHORT_RUN:
        return "such a short run needs no warmup, scheduler.warmup_steps=0"
    return f"a twentieth is usual, scheduler.warmup_steps={max_steps // 20}"


def warmup_is_most_of_the_run(schedule: ScheduleFacts) -> str | None:
    warmup, steps = schedule.warmup_steps, schedule.max_steps
    return None if steps < SHORT_RUN or (warmup or 0) <= VERY_LONG_WARMUP * steps else warmup_is_long(schedule)


def rate_is_unusual(schedule: ScheduleFacts) -> str | None:
    if not schedule.is_adamw or schedule.lr is None or USUAL_RATES[0] <= schedule.lr <= USUAL_RATES[1]:
        return None
    direction = "small" if schedule.lr < USUAL_RATES[0] else "large"
    usual = "AdamW usually needs 1e-4 to 3e-3, more for smaller models"
    return f"optimizer.lr={schedule.lr:g}: unusually {direction}; {usual}"


def points_after_the_end(schedule: ScheduleFacts) -> str | None:
    """Remark on points that are never reached. A table of steps may have its last point at the end of the run."""
    for points in schedule.points:
        unit = "tokens" if points.in_tokens else "steps"
        if points.last < points.end or (points.last == points.end and not points.in_tokens):
            continue
        never = "it never takes effect" if points.first >= points.end else f"its point at {points.last:,} is not used"
        return f"{points.key}: the run ends after {points.end:,} {unit}, so {never}; use earlier points"
    return None


def decay_is_longer_than_the_run(schedule: ScheduleFacts) -> str | None:
    end = schedule.schedule_steps
    if end is None or schedule.decay_steps is None or schedule.decay_steps <= end:
        return None
    return (
        f"scheduler.decay_steps={schedule.decay_steps}: longer than the schedule, which ends at step {end:,}, so the "
        f"learning rate never reaches its peak; a fifth is usual, scheduler.decay_steps={max(1, end // 5)}"
    )


def decay_beside_average(schedule: ScheduleFacts) -> str | None:
    if not (schedule.averages and schedule.decays):
        return None
    return (
        "optimizer=schedule_free: averages the weights instead of a decay of the learning rate; use scheduler=constant"
    )


SCHEDULE_REMARKS = (
    warmup_never_ends,
    rate_rises,
    schedule_ends_early,
    schedule_ends_late,
    warmup_is_long,
    rate_is_unusual,
    points_after_the_end,
    decay_is_longer_than_the_run,
    decay_beside_average,
)
# These tolerate a small difference between the lengths of run and schedule, which may be intended, above all in a fork.
CERTAIN_REMARKS = (
    warmup_never_ends,
    rate_rises,
    schedule_ends_too_early,
    partial(schedule_ends_late, tolerance=0.1),
    warmup_is_most_of_the_run,
    rate_is_unusual,
    decay_is_longer_than_the_run,
    decay_beside_average,
)
