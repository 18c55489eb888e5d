"""Decoder computes the bits of Llama without options; with any option it keeps what a language model promises."""

import copy
import math
from typing import Any

import pytest
import torch
from support.compiler import NEEDS_A_COMPILER
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmtrain.model import decoder_attention
from lmtrain.model.decoder import Decoder
from lmtrain.model.llama import Llama
from lmtrain.model.size_limit import ModelTooLargeError, SizeLimit, refuse_too_large
from lmtrain.optimizer.rules import role_of

TINY: dict[str, Any] = {
    "vocab_size": 61, "block_size": 24, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "d_model": 32, "d_ff": 48
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "qk_norm": {"qk_norm": True},
    "attention_softcap": {"attention_softcap": 5.0},
    "logit_softcap": {"logit_softcap": 10.0},
    "z_loss": {"z_loss": 1e-2},
    "relu2": {"mlp": "relu2"},
    "parallel_blocks": {"parallel_blocks": True},
    "sliding_window": {"sliding_window": 4},
    "global_every": {"sliding_window": 4, "global_every": 2},
    "untied": {"tie_embeddings": False},
    "value_embeddings": {"value_embeddings": [0, -1]},
    "rope_fraction": {"rope_fraction": 0.5},
    "nope_every": {"nope_every": 2},
    "embedding_scale": {"embedding_scale": True},
}
OPTIONS["all"] = {key: value for options in OPTIONS.values() for key, value in options.items()}
DOCUMENTS = {"mask_documents": True, "end_of_text": 3}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1337)
        yield


def randomised(**options: Any) -> Decoder:
    """Return a model in float64 whose parameters are all random, so that everything matters."""
    model = Decoder(**{**TINY, **options}).double()
    with torch.no_grad():
        for param in model.parameters():
            param.normal_(std=0.3)
    return model


def batch(vocab_size: int = 61, rows: int = 2, length: int = 24) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(vocab_size, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:]


def loss_and_gradients(model: Any, forward: Any = None) -> list[Tensor]:
    model.zero_grad()
    loss = (model if forward is None else forward)(*batch())[1]
    loss.backward()
    return [loss.detach(), *(param.grad.clone() for param in model.parameters())]


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False, "n_kv_head": 1}, {"dropout": 0.1}, DOCUMENTS], ids=str
)
def test_without_options_the_bits_are_those_of_llama(changes: dict[str, Any]) -> None:
    found = []
    for architecture in (Llama, Decoder):
        torch.manual_seed(0)
        model = architecture(**{**TINY, **changes})
        start = {name: param.detach().clone() for name, param in model.named_parameters()}
        found.append((start, model(batch()[0])[0], loss_and_gradients(model)))
    (llama, logits, results), (ours, our_logits, our_results) = found
    assert [*llama] == [*ours]
    assert all(torch.equal(llama[name], ours[name]) for name in llama)
    assert torch.equal(logits, our_logits)
    assert all(torch.equal(one, other) for one, other in zip(results, our_results, strict=True))


@each_option
@pytest.mark.parametrize("sizes", [(65, 128), (512, 256), (1000, 64)], ids=str)
def test_the_initial_loss_is_that_of_a_uniform_guess(options: dict[str, Any], sizes: tuple[int, int]) -> None:
    vocab_size, d_model = sizes
    model = Decoder(
        **{**TINY, "vocab_size": vocab_size, "block_size": 64, "d_model": d_model, "d_ff": 4 * d_model, **options}
    )
    with torch.no_grad():
        loss = model(*batch(vocab_size, 8, 64))[1].item()
    assert loss == pytest.approx(math.log(vocab_size), abs=0.1)


@each_option
@pytest.mark.parametrize("changed", [0, 11, 23])
def test_later_tokens_do_not_reach_earlier_logits(options: dict[str, Any], changed: int) -> None:
    model, (x, _) = randomised(**options), batch()
    other = x.clone()
    other[:, changed:] = (other[:, changed:] + 1) % 61
    with torch.no_grad():
        before, after = model(x)[0], model(other)[0]
    torch.testing.assert_close(before[:, :changed], after[:, :changed], rtol=0, atol=1e-10)
    assert ((before - after)[:, changed:].abs().amax(-1) > 1e-9).all()


@each_option
def test_documents_stay_apart_and_positions_restart(options: dict[str, Any]) -> None:
    model = randomised(**options, **DOCUMENTS)
    first, second = (torch.randint(4, 61, (1, length)) for length in (9, 12))
    end = torch.tensor([[3]])
    with torch.no_grad():
        packed = model(torch.cat((end, first, end, second), dim=1))[0]
        alone = [model(torch.cat((end, part), dim=1))[0] for part in (first, second)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("option", ["sliding_window", "all"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_token_outside_the_windows_of_all_layers_changes_nothing(option: str, masked: bool) -> None:
    options = {**OPTIONS[option], "global_every": None, **(DOCUMENTS if masked else {})}
    model, reach = randomised(**options), TINY["n_layer"] * 3
    x = torch.randint(4, 61, (2, 24))
    other = x.clone()
    other[:, 5] = 4 + (other[:, 5] - 3) % 57
    with torch.no_grad():
        changed = (model(x)[0] != model(other)[0]).any(-1).any(0)
    assert changed.nonzero().flatten().tolist() == [*range(5, 5 + reach + 1)]


def test_a_global_layer_sees_everything() -> None:
    model, (x, _) = randomised(**OPTIONS["global_every"]), batch()
    other = x.clone()
    other[:, 0] = (other[:, 0] + 1) % 61
    with torch.no_grad():
        assert ((model(x)[0] - model(other)[0]).abs().amax(-1) > 1e-9).all()


@each_option
def test_gradient_flows_to_every_parameter(options: dict[str, Any]) -> None:
    model = Decoder(**{**TINY, **options})
    model(*batch())[1].backward()
    without = [name for name, param in model.named_parameters() if param.grad is None or not param.grad.any()]
    assert without == []
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


@each_option
def test_flops_match_the_count_of_torch(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    length, model = 24, Decoder(**{**TINY, **options})
    if "sliding_window" in options:  # chunks of one query multiply it with the keys of its window and no others
        length, model = 96, Decoder(**{**TINY, "block_size": 96, **options})
        monkeypatch.setattr("lmtrain.model.document_mask.CHUNK_QUERIES", 1)
        monkeypatch.setattr("lmtrain.model.document_mask.MOST_CHUNKS", 96)
    x, y = batch(rows=1, length=length)
    # torch does not count products of the fused CPU kernel. The math backend also multiplies the masked half.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x, y)[1].backward()
    by_torch = counter.get_total_flops() / x.numel()
    if {"global_every", "attention_softcap"} <= options.keys():  # chunks do not multiply the masked half
        by_torch += 12 * TINY["d_model"] * (length - 1) / 2
    assert model.flops_per_token(length) == pytest.approx(by_torch, rel=0.01)


def test_the_z_loss_acts_through_the_gradient_alone() -> None:
    plain, pulled = Decoder(**TINY), Decoder(**TINY, z_loss=1e-2)
    pulled.load_state_dict(plain.state_dict())
    ours, others = loss_and_gradients(pulled), loss_and_gradients(plain)
    torch.testing.assert_close(ours[0], others[0], rtol=1e-6, atol=0)  # two ways to add in float32
    assert not torch.allclose(ours[1], others[1], rtol=1e-2)


def test_soft_caps_limit_the_logits_and_the_loss() -> None:
    model, (x, y) = randomised(logit_softcap=0.5), batch()
    with torch.no_grad():
        logits, loss = model(x)[0], model(x, y)[1]
    assert 0.45 < logits.abs().max() < 0.5
    exact = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
    torch.testing.assert_close(loss, exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_option
def test_attention_computes_in_the_format_of_autocast(
    options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = []

    def spy(*tensors: Any) -> Tensor:
        formats.extend(tensor.dtype for tensor in tensors[:3])
        return attend(*tensors)

    attend = decoder_attention.attend
    monkeypatch.setattr(decoder_attention, "attend", spy)
    model = Decoder(**{**TINY, **options})
    with torch.autocast("cpu", dtype):
        loss = model(*batch())[1]
    loss.backward()
    assert {*formats} == {dtype}
    assert loss.dtype == torch.float32
    assert all(param.grad.isfinite().all() for param in model.parameters())


def test_rules_of_optimizers_find_the_roles_of_the_parameters() -> None:
    model = Decoder(**{**TINY, **OPTIONS["all"]})
    roles = {name.removeprefix("layers.0."): role_of(name, param.ndim) for name, param in model.named_parameters()}
    assert [name for name, role in roles.items() if role == "embedding"] == [
        "embedding.weight", "attention.value_embedding.weight", "layers.1.attention.value_embedding.weight"
    ]  # fmt: skip
    assert {roles["attention.q_norm.weight"], roles["attention.value_mix"]} == {"vector"}
    assert (roles["output.weight"], roles["mlp.up.weight"]) == ("output", "hidden")


def test_the_size_limit_counts_value_embeddings() -> None:
    large = {**TINY, "vocab_size": 10**9, "value_embeddings": [0]}
    with pytest.raises(ModelTooLargeError, match="takes more than"):
        refuse_too_large(lambda: Decoder(**large), SizeLimit(bytes=4 * 33 * 10**9))
    refuse_too_large(lambda: Decoder(**{**large, "value_embeddings": []}), SizeLimit(bytes=4 * 33 * 10**9))


def test_any_callable_can_make_the_mlp() -> None:
    model = Decoder(**TINY, mlp=lambda d_model, d_ff: torch.nn.Linear(d_model, d_model))
    assert isinstance(model.layers[0].mlp, torch.nn.Linear)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_embeddings": [0, 2]}, r"model\.value_embeddings=\[0, 2\]: there is no layer 2; give numbers .* to 1"),
        ({"rope_fraction": 0.4}, r"model\.rope_fraction=0\.4: rotates 3 of 8 .* such as with 0\.5"),
        ({"rope_fraction": 0.1}, r"model\.rope_fraction=0\.1: rotates 0 of 8 .* such as with 0\.25"),
        ({"d_model": 30}, r"model\.d_model=30.*model\.n_head=4"),
        ({"n_kv_head": 3}, r"model\.n_kv_head=3.*model\.n_head=4"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoder(**{**TINY, **options})


@pytest.mark.slow
@NEEDS_A_COMPILER
@pytest.mark.parametrize(
    ("backend", "options"),
    [
        (
            "aot_eager",
            {**OPTIONS["all"], **DOCUMENTS},
        ),  # one graph; kernels for all of it would take minutes to compile
        ("inductor", {"n_layer": 1, "sliding_window": 4, "logit_softcap": 10.0, "z_loss": 1e-2, "mlp": "relu2"}),
    ],
)
def test_options_are_compiled_into_one_graph(backend: str, options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model = Decoder(**{**TINY, **options}).double()
    expected = loss_and_gradients(copy.deepcopy(model))
    try:
        ours = loss_and_gradients(model, torch.compile(model, fullgraph=True, backend=backend))
    finally:
        torch._dynamo.reset()
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)  # a million roundings in float64
