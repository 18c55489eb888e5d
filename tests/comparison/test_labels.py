"""Labels are short, and different settings never get the same label."""

import itertools

import pytest

from lmtrain.comparison.labels import MAX_LABEL_CHARS, cut_middle, labels_of, shortened

KEYS = ["optimizer.weight_decay", "trainer.grad_clip", "scheduler.warmup_steps", "optimizer.lr", "data.batch_size"]


def test_labels_name_settings_by_the_last_part_of_their_key() -> None:
    configs = [{"optimizer.lr": lr, "data.batch_size": 8} for lr in (1e-3, 3e-3)]
    assert labels_of(configs, ["optimizer.lr"]) == ["lr=0.001", "lr=0.003"]


def test_long_labels_leave_out_common_settings_but_stay_unique() -> None:
    choices = itertools.product([0.0, 0.1], [0.5, 1.0], [10, 200], [1e-3, 3e-3, 1e-2], [4, 8])
    configs = [dict(zip(KEYS, values, strict=True)) for values in choices]
    labels = labels_of(configs, KEYS)
    assert len(set(labels)) == len(configs)
    # A config that differs from all others in one value needs only that value.
    odd = dict.fromkeys(KEYS, 7) | {"optimizer.lr": 0.5}
    common = [dict.fromkeys(KEYS, 1) | {"data.batch_size": size} for size in range(9)]
    assert all(len(label) <= MAX_LABEL_CHARS for label in labels_of([*common, odd], KEYS))


def test_numbers_are_never_cut() -> None:
    text = "from lr=0.001 min_lr=0.00025 weight_decay=0.125 at step 10"
    for limit in range(4, len(text)):
        kept = cut_middle(text, limit)
        assert len(kept) <= limit
        head, tail = kept.split("…")
        assert (text.startswith(head), text.endswith(tail)) == (True, True)
        for number in ("0.001", "0.00025", "0.125"):
            start = text.index(f"={number}") + 1
            assert not start < len(head) < start + len(number)
            assert not start < len(text) - len(tail) < start + len(number)


def test_equal_settings_have_the_same_label() -> None:
    config = {"optimizer.lr": 0.1, "data.batch_size": 2}
    assert len(set(labels_of([config, {**config, "seed": 3}], ["optimizer.lr", "data.batch_size"]))) == 1


def test_values_that_differ_only_in_the_middle_get_different_labels() -> None:
    configs = [{"data.note": f"{'a' * 30}{middle}{'b' * 30}"} for middle in "xy"]
    first, second = labels_of(configs, ["data.note"])
    assert first != second


@pytest.mark.parametrize(
    ("labels", "short"),
    [
        (["lr=0.001", "lr=0.01"], ["lr=0.001", "lr=0.01"]),
        (["optimizer=adamw", "optimizer=muon", "optimizer=adamw"], ["…er=adamw", "…zer=muon", "…er=adamw"]),
        (["scale=false mlp=x y=1", "scale=false mlp=z y=1"], ["1: s", "2: s"]),
    ],
)
def test_shortened_labels_stay_different(labels: list[str], short: list[str]) -> None:
    width = max(map(len, short))
    assert shortened(labels, width) == short
