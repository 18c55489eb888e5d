"""Which process has which rows of a parameter."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.parallel.layout import dealt_out, rows_of_rank, without_memory


@given(rows=st.integers(1, 200), ranks=st.integers(1, 17))
def test_rows_are_those_of_torch_chunk(rows: int, ranks: int) -> None:
    whole = torch.arange(rows)
    chunks = [*whole.chunk(ranks), *[whole[:0]] * ranks][:ranks]
    for rank, chunk in enumerate(chunks):
        assert torch.equal(rows_of_rank(whole.shape, rank, ranks).view_of(whole), chunk)


@given(sizes=st.dictionaries(st.text(max_size=3), st.integers(1, 1000)), ranks=st.integers(1, 9))
def test_each_tensor_has_one_owner_and_sums_are_alike(sizes: dict[str, int], ranks: int) -> None:
    owners = dealt_out(sizes, ranks)
    assert owners.keys() == sizes.keys()
    sums = [sum(size for name, size in sizes.items() if owners[name] == rank) for rank in range(ranks)]
    assert max(sums) - min(sums) <= max(sizes.values(), default=0)


def test_a_shape_without_memory() -> None:
    tensor = without_memory(torch.zeros(2, dtype=torch.float64), torch.Size([1000, 1000]))
    assert tensor.shape == (1000, 1000)
    assert tensor.dtype == torch.float64
    assert tensor.untyped_storage().nbytes() == 8
    assert without_memory(torch.zeros(2), torch.Size([])).shape == ()
