"""The tokens and steps of a batch schedule are those of a loop that takes one step after the other."""

from hypothesis import given
from hypothesis import strategies as st

from lmtrain.loop.step_sizes import BatchSizes, value_at

NUMBERS = st.integers(1, 40)
SIZES = st.builds(
    lambda sequences, block_size, tokens, numbers: BatchSizes(
        sequences, block_size, list(zip(sorted(tokens), numbers, strict=False))
    ),
    NUMBERS,
    st.integers(1, 16),
    st.sets(st.integers(0, 3000), max_size=5),
    st.lists(NUMBERS, min_size=5, max_size=5),
)


def test_the_size_of_a_step_is_that_at_its_start() -> None:
    points = [(100, 4), (200, 8)]
    assert [value_at(points, tokens, 2) for tokens in (0, 99, 100, 199, 200, 10**9)] == [2, 2, 4, 4, 8, 8]
    assert value_at([], 5, 3) == 3
    assert value_at([(0, 7)], 0, 3) == 7
    sizes = BatchSizes(2, 30, points)  # steps start after 0, 60, 120, 240 and 480 tokens
    assert [sizes.tokens(steps) for steps in range(6)] == [0, 60, 120, 240, 480, 720]


@given(sizes=SIZES, steps=st.integers(1, 200), before=st.integers(0, 4000))
def test_a_run_has_the_tokens_of_its_steps(sizes: BatchSizes, steps: int, before: int) -> None:
    now, taken = before, []
    for _ in range(steps):
        taken.append(sizes.at(now) * sizes.block_size)
        now += taken[-1]
    assert sizes.tokens(steps, before) == sum(taken)
    assert sizes.range(steps, before) == (min(taken), max(taken))
    assert sizes.steps(sum(taken), before) == steps
    assert int(sizes.steps(sum(taken) + 1, before)) == steps + (sizes.at(now) * sizes.block_size == 1)
    assert int(sizes.steps(sum(taken) - 1, before)) == steps - 1
