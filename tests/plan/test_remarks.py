"""Each likely mistake is reported with its key, and sound runs have no remarks."""

import re
from dataclasses import replace
from typing import Any

import pytest

from lmtrain.plan.facts import Intervals, PointsFacts, RunFacts, ScheduleFacts
from lmtrain.plan.remarks import RUN_REMARKS, data_repeated_far_too_often, remarks
from lmtrain.plan.schedule_remarks import CERTAIN_REMARKS, SCHEDULE_REMARKS, certain_mistakes, points_after_the_end

SOUND = RunFacts(
    schedule=ScheduleFacts(max_steps=5000, schedule_steps=5000, warmup_steps=200, lr=6e-4, min_lr=6e-5),
    intervals=Intervals(evaluation=200, log=10, checkpoint=200, eval_tokens=None),
    parameters=8_000_000,
    step_tokens=32768,
    micro_batch_tokens=8192,
    block_size=512,
    device="cuda",
    dtype="bfloat16",
    epochs={"data/a": 1.5},
    steps_per_epoch=3333,
    val_tokens=100_000,
    step_seconds=0.3,
    checkpoint_bytes=10**8,
    disk_needed=4 * 10**8,
    disk_free=10**10,
    memory_needed=8 * 10**9,
    memory_free=24 * 10**9,
    batch_size=16,
    vocab_size=32000,
    d_model=384,
    n_head=6,
    model_block_size=512,
    learned_positions=True,
    speed_to_float32=None,
)


def with_schedule(**changes: Any) -> RunFacts:
    return replace(SOUND, schedule=replace(SOUND.schedule, **changes))


def with_intervals(**changes: Any) -> RunFacts:
    return replace(SOUND, intervals=replace(SOUND.intervals, **changes))


MISTAKES = {  # by the remark's name: a run with the mistake, and a pattern of the text
    "warmup_never_ends": (with_schedule(warmup_steps=5000), "scheduler.warmup_steps=5000: the run ends after 5,000"),
    "rate_rises": (with_schedule(min_lr=1e-3), "scheduler.min_lr=0.001: above the peak, optimizer.lr=0.0006"),
    "schedule_ends_early": (with_schedule(schedule_steps=4000), "scheduler.max_steps=4000: .* last 1,000 steps"),
    "schedule_ends_late": (with_schedule(schedule_steps=9000), "scheduler.max_steps=9000: the run ends after 5,000"),
    "warmup_is_long": (with_schedule(warmup_steps=1500), "scheduler.warmup_steps=1500: 30% of the run; .*=250"),
    "points_after_the_end": (
        with_schedule(points=[PointsFacts("trainer.batch_schedule", 0, 2 * 10**9, 10**9, in_tokens=True)]),
        "trainer.batch_schedule: the run ends after 1,000,000,000 tokens, so its point at 2,000,000,000 is",
    ),
    "rate_is_unusual": (with_schedule(lr=0.6), "optimizer.lr=0.6: unusually large"),
    "decay_is_longer_than_the_run": (
        with_schedule(decay_steps=6000),
        "scheduler.decay_steps=6000: longer than the schedule, .*decay_steps=1000",
    ),
    "decay_beside_average": (with_schedule(averages=True), "optimizer=schedule_free: .*use scheduler=constant"),
    "memory_too_small": (replace(SOUND, memory_free=10**9), "8GB of memory, but only 1GB .*data.batch_size=8"),
    "disk_too_small": (replace(SOUND, disk_free=10**8), "400MB, but only 100MB are free; .*keep_checkpoints"),
    "gpu_left_idle": (replace(SOUND, device="cpu", idle_gpu=True), "system.device=cpu: this machine has a GPU"),
    "dtype_without_hardware": (
        replace(SOUND, device="cpu", speed_to_float32=0.1),
        "system.dtype=bfloat16: .* 0.1 times .*system.dtype=float32",
    ),
    "batch_larger_than_data": (replace(SOUND, steps_per_epoch=0.5), "32,768 tokens, more than all .*data.batch_size"),
    "data_unseen": (
        replace(SOUND, epochs={"a": 0.25}, steps_per_epoch=20000),
        "75% of a is never seen; trainer.max_steps=20000",
    ),
    "data_repeated": (replace(SOUND, epochs={"a": 9.0, "b": 1.0}), "trainer.max_steps=5000: sees a 9 times;"),
    "few_tokens": (replace(SOUND, parameters=10**9), "0.16 tokens per parameter, but about 20"),
    "many_tokens": (replace(SOUND, parameters=1000), "164k tokens per parameter"),
    "never_evaluated_before_the_end": (with_intervals(evaluation=9000), "trainer.eval_interval=9000: .* use 500"),
    "evaluation_outweighs_training": (
        with_intervals(evaluation=1, eval_tokens=819_200),
        "trainer.eval_interval=1: an evaluation of 100k tokens .* trainer.eval_tokens=8192 ",
    ),
    "val_smaller_than_a_batch": (replace(SOUND, val_tokens=700), "val split has 700 tokens, less than one micro-batch"),
    "never_logged_in_between": (with_intervals(log=5000), "trainer.log_interval=5000: .* use 50"),
    "crash_loses_much": (replace(SOUND, step_seconds=30.0), "trainer.checkpoint_interval=200: .* 1h40m .* use 60"),
    "saving_dominates": (with_intervals(checkpoint=1), "trainer.checkpoint_interval=1: writing .* use 12"),
    "positions_never_trained": (replace(SOUND, model_block_size=1024), "model.block_size=1024: positions from 512 on"),
    "vocabulary_unaligned": (replace(SOUND, vocab_size=50257), "model.vocab_size=50257: .* 50304"),
    "heads_unaligned": (replace(SOUND, d_model=330, n_head=6), "model.n_head=6: heads are 55 wide"),
}


def test_a_sound_run_has_no_remarks() -> None:
    assert remarks(SOUND) == []


def test_unknown_facts_cause_no_remarks() -> None:
    unknown = RunFacts(ScheduleFacts(5000), Intervals(), 8_000_000, 32768, 8192, 512, "cpu", "float32")
    assert remarks(unknown) == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_with_its_key(mistake: str) -> None:
    facts, expected = MISTAKES[mistake]
    (remark,) = remarks(facts)
    assert re.search(expected, remark), remark


def test_every_remark_is_tested() -> None:
    assert {remark.__name__ for remark in (*SCHEDULE_REMARKS, *RUN_REMARKS)} == MISTAKES.keys()


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 0),
        ({"warmup_steps": 5000}, 1),
        ({"min_lr": 1e-3}, 1),
        ({"schedule_steps": 4900}, 0),  # close enough to be intended
        ({"schedule_steps": 5400}, 0),
        ({"schedule_steps": 2500}, 1),
        ({"schedule_steps": 50_000}, 1),
        ({"warmup_steps": 1500}, 0),
        ({"warmup_steps": 3000}, 1),
        ({"warmup_steps": 60, "max_steps": 90, "schedule_steps": 90}, 0),  # a short trial run
        ({"lr": 0.6}, 1),
        ({"lr": 0.6, "is_adamw": False}, 0),
        ({"averages": True}, 1),
        ({"decay_steps": 5000}, 0),
        ({"decay_steps": 5001}, 1),
        ({"averages": True, "decays": False}, 0),
        ({"schedule_steps": 2500, "first_step": 2400}, 1),
        ({"schedule_steps": 2500, "first_step": 2500}, 0),  # a run that continues at its final learning rate
    ],
)
def test_training_warns_only_of_certain_mistakes(changes: dict[str, Any], count: int) -> None:
    assert len(CERTAIN_REMARKS) == 8
    assert len(certain_mistakes(replace(SOUND.schedule, **changes))) == count


def test_training_warns_of_data_that_is_repeated_far_too_often() -> None:
    assert data_repeated_far_too_often({"data/a": 15.0, "data/b": 1.0}, 500) is None
    remark = data_repeated_far_too_often({"data/a": 26.4, "data/b": 1.0}, 500)
    assert remark is not None
    assert remark.startswith("trainer.max_steps=500: sees data/a 26.4 times; beyond 16 epochs")


def test_an_unusual_learning_rate_is_reported_only_for_adamw() -> None:
    cfg = {"scheduler": {"lr": 0.1}, "trainer": {"max_steps": 100}, "optimizer": {"_target_": "torch.optim.SGD"}}
    assert certain_mistakes(ScheduleFacts.of(cfg)) == []
    cfg["optimizer"] = {"_target_": "torch.optim.AdamW"}
    assert certain_mistakes(ScheduleFacts.of(cfg))[0].startswith("optimizer.lr=0.1: unusually large")


def test_the_ways_out_do_not_contradict_each_other() -> None:
    """If a model is too large for data that it sees often, neither fewer nor more steps help."""
    both = remarks(replace(SOUND, parameters=10**9, epochs={"data/a": 50.0}))
    assert len(both) == 2
    assert "more data, a smaller model, or model.dropout=0.1" in both[0]
    assert both[1].endswith("is enough for this data, as more steps would only repeat it; or use more data")


@pytest.mark.parametrize(
    ("trainer", "remark"),
    [
        ({"batch_schedule": [[0, 8], [2000, 32]]}, None),
        (
            {"batch_schedule": [[6000, 32]]},
            "batch_schedule: the run ends after 5,120 tokens, so it never takes",
        ),
        ({"length_schedule": [[0, 8], [5120, 16]]}, "trainer.length_schedule: .* so its point at 5,120 is not used"),
        ({"momentum_schedule": [[0, 0.9], [20, 1.0]]}, None),  # a table may end where the run ends
        (
            {"weight_decay_schedule": [[0, 0.0], [21, 1.0]]},
            "weight_decay_schedule: the run ends after 20 steps",
        ),
    ],
)
def test_points_that_the_run_never_reaches_are_reported(trainer: dict[str, Any], remark: str | None) -> None:
    config = {
        "optimizer": {"_target_": "lmtrain.optimizer.adamw.adamw"},
        "scheduler": {},
        "data": {"batch_size": 8, "block_size": 16},
        "trainer": {"max_steps": 20, "gradient_accumulation_steps": 2, **trainer},
    }
    found = points_after_the_end(ScheduleFacts.of(config))
    assert (found is None) == (remark is None)
    assert found is None or re.search(remark or "", found), found


def test_a_short_run_needs_no_warmup() -> None:
    schedule = ScheduleFacts(max_steps=20, schedule_steps=20, warmup_steps=30, lr=6e-4, min_lr=6e-5)
    assert certain_mistakes(schedule)[0].endswith("such a short run needs no warmup, scheduler.warmup_steps=0")


def test_remarks_about_a_fork_consider_only_its_own_steps() -> None:
    fork = replace(with_intervals(evaluation=90), schedule=replace(SOUND.schedule, first_step=4900))
    fork = replace(fork, tokens_before=4900 * SOUND.step_tokens)
    assert (fork.steps, fork.tokens, fork.seconds) == (100, 100 * SOUND.step_tokens, pytest.approx(30))
    assert fork.tokens_per_parameter == SOUND.tokens_per_parameter
    # The next evaluation would be at step 5100, after the end.
    (remark,) = remarks(replace(fork, intervals=replace(SOUND.intervals, evaluation=300)))
    assert remark.startswith("trainer.eval_interval=300: the run is evaluated only at its end")
    assert remark.endswith("use 10")
    assert remarks(fork) == []  # an evaluation at step 4950
    assert remarks(replace(fork, schedule=replace(fork.schedule, warmup_steps=1500))) == []  # the warmup is over
    (remark,) = remarks(replace(fork, schedule=replace(fork.schedule, schedule_steps=4800)))
    assert "whose last 100 steps have the final learning rate" in remark


def test_a_model_that_can_recompute_its_layers_may_do_so_if_memory_is_too_small() -> None:
    facts = replace(SOUND, memory_free=10**9, recompute="none", activations=5 * 10**9)
    (text,) = remarks(facts)
    assert "; model.recompute=layer keeps a small part of the 5GB of activations, for about a third" in text
    for recompute in ("layer", None):
        assert not any("recompute" in text for text in remarks(replace(facts, recompute=recompute)))
