"""The learning rate is drawn as text."""

from functools import partial

import pytest

from lmtrain.plan.schedule_picture import HEIGHT, WIDTH, draw_rates, sample_rates
from lmtrain.scheduler import constant, cosine


def test_steps_are_sampled_from_the_first_to_the_last() -> None:
    schedule = partial(cosine, lr=1.0, min_lr=0.1, warmup_steps=100, max_steps=5000)
    steps, rates = sample_rates(schedule, 5000)
    assert (steps[0], steps[-1]) == (1, 5000)
    assert rates == [schedule(step - 1) for step in steps]
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert steps == sorted(set(steps))


def test_picture_is_plain_text_of_a_fixed_size() -> None:
    text = draw_rates(*sample_rates(partial(cosine, lr=6e-4, min_lr=6e-5, warmup_steps=200, max_steps=5000), 5000))
    lines = text.splitlines()
    assert len(lines) == HEIGHT
    assert all(len(line) <= WIDTH for line in lines)
    assert "\x1b" not in text
    assert "6.0e-04" in lines[1]
    assert all(word in lines[-1] for word in ("1", "2,500", "5,000"))
    # The rate is high after the warmup and low at the end: braille dots in the upper left and the lower right.
    assert any("⠀" < mark <= "⣿" for mark in lines[1][8:30])
    assert not any("⠀" < mark <= "⣿" for mark in lines[1][40:])
    assert any("⠀" < mark <= "⣿" for mark in lines[8][60:])


@pytest.mark.parametrize("max_steps", [1, 2, 3, 7])
def test_short_runs_have_a_picture(max_steps: int) -> None:
    text = draw_rates(*sample_rates(partial(constant, lr=1e-3, warmup_steps=0), max_steps))
    assert len(text.splitlines()) == HEIGHT
    assert "1.0e-03" in text


def test_a_learning_rate_of_zero_is_drawn() -> None:
    assert "0┤" in draw_rates(*sample_rates(lambda step: 0.0, 10))


def test_a_fork_shows_only_its_own_steps() -> None:
    schedule = partial(cosine, lr=1.0, min_lr=0.1, warmup_steps=100, max_steps=5000)
    steps, rates = sample_rates(schedule, 5000, 4000)
    assert (steps[0], steps[-1]) == (4001, 5000)
    assert rates == [schedule(step - 1) for step in steps]
    assert all(word in draw_rates(steps, rates).splitlines()[-1] for word in ("4,001", "4,500", "5,000"))
