"""Labels: short, and never the same for different settings."""

import itertools

from lmtrain.compare.labels import MAX_LABEL_CHARS, cut_middle, labels_of

KEYS = ["optimizer.weight_decay", "trainer.grad_clip", "scheduler.warmup_steps", "optimizer.lr", "data.batch_size"]


def test_labels_have_what_differs_by_its_last_name() -> None:
    configs = [{"optimizer.lr": lr, "data.batch_size": 8} for lr in (1e-3, 3e-3)]
    assert labels_of(configs, ["optimizer.lr"]) == ["lr=0.001", "lr=0.003"]


def test_long_ones_leave_out_what_most_have_but_nothing_that_tells_them_apart() -> None:
    choices = itertools.product([0.0, 0.1], [0.5, 1.0], [10, 200], [1e-3, 3e-3, 1e-2], [4, 8])
    configs = [dict(zip(KEYS, values, strict=True)) for values in choices]
    labels = labels_of(configs, KEYS)
    assert len(set(labels)) == len(configs)
    # One setting that is like no other needs no more than what is its own.
    odd = dict.fromkeys(KEYS, 7) | {"optimizer.lr": 0.5}
    common = [dict.fromkeys(KEYS, 1) | {"data.batch_size": size} for size in range(9)]
    assert all(len(label) <= MAX_LABEL_CHARS for label in labels_of([*common, odd], KEYS))


def test_a_number_is_cut_nowhere() -> None:
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


def test_equal_settings_are_called_the_same() -> None:
    config = {"optimizer.lr": 0.1, "data.batch_size": 2}
    assert len(set(labels_of([config, {**config, "seed": 3}], ["optimizer.lr", "data.batch_size"]))) == 1


def test_values_that_differ_in_their_middle_alone_are_told_apart() -> None:
    configs = [{"data.note": f"{'a' * 30}{middle}{'b' * 30}"} for middle in "xy"]
    first, second = labels_of(configs, ["data.note"])
    assert first != second
