"""GPT-2 matches transformers in float64, and has the right size, initial loss, causality and FLOPs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmtrain.model.gpt2 import GPT2

TINY: dict[str, Any] = {"vocab_size": 61, "block_size": 16, "n_layer": 2, "n_head": 4, "d_model": 32}
VARIANTS = [
    pytest.param({}, id="gpt2"),
    pytest.param({"bias": False}, id="no-bias"),
    pytest.param({"gelu": "exact"}, id="exact-gelu"),
    pytest.param({"tie_embeddings": False}, id="untied"),
    pytest.param({"d_ff": 20}, id="other-width"),
    pytest.param({"bias": False, "gelu": "exact", "tie_embeddings": False, "n_layer": 3, "n_head": 1}, id="nanogpt"),
]


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1337)
        yield


def shipped() -> dict[str, Any]:
    config = OmegaConf.load(Path(__file__).parents[2] / "conf/model/gpt2.yaml")
    return {key: value for key, value in OmegaConf.to_container(config, resolve=True).items() if key != "_target_"}


def randomised(dtype: torch.dtype, **changes: Any) -> GPT2:
    """Return a model whose parameters are all random: with the initial gains and biases, swapped names stay hidden."""
    model = GPT2(**{**TINY, **changes}).to(dtype)
    with torch.no_grad():
        for param in model.parameters():
            param.normal_(std=0.3)
    return model


def in_transformers(model: GPT2, **changes: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel  # takes seconds, and not every test needs it

    config = {**TINY, "d_ff": None, "bias": True, "gelu": "tanh", "tie_embeddings": True, **changes}
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config["vocab_size"],
            n_positions=config["block_size"],
            n_layer=config["n_layer"],
            n_head=config["n_head"],
            n_embd=config["d_model"],
            n_inner=config["d_ff"],
            activation_function={"tanh": "gelu_new", "exact": "gelu"}[config["gelu"]],
            tie_word_embeddings=config["tie_embeddings"],
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=None,
        )
    ).to(model.embedding.weight.dtype)
    names = {
        "attention_norm": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.o": "attn.c_proj",
        "mlp_norm": "ln_2",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    }
    ours = model.state_dict()
    state = {"transformer.wte.weight": ours["embedding.weight"], "transformer.wpe.weight": ours["positions.weight"]}
    state["lm_head.weight"] = ours.get("output.weight", ours["embedding.weight"])

    def copy(name: str, their_name: str) -> None:
        weight = ours[f"{name}.weight"]
        state[f"{their_name}.weight"] = weight.T if weight.ndim == 2 else weight  # Conv1D is a transposed Linear
        state[f"{their_name}.bias"] = ours.get(f"{name}.bias", torch.zeros(weight.shape[0], dtype=weight.dtype))

    copy("norm", "transformer.ln_f")
    for layer in range(config["n_layer"]):
        for name, their_name in names.items():
            copy(f"layers.{layer}.{name}", f"transformer.h.{layer}.{their_name}")
    theirs.load_state_dict(state, strict=True)
    return theirs.eval()


def batch(vocab_size: int, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(vocab_size, (rows, length + 1))
    return tokens[:, :-1], tokens[:, 1:].clone()


@pytest.mark.parametrize("changes", VARIANTS)
def test_logits_match_transformers_in_float64(changes):
    model = randomised(torch.float64, **changes)
    x, _ = batch(model.vocab_size, 3, model.block_size)
    with torch.no_grad():
        ours, theirs = model(x)[0], in_transformers(model, **changes)(x).logits
    assert ours.dtype == torch.float64
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)  # a million roundings in float64


def test_the_two_gelus_differ():
    tanh, exact = randomised(torch.float64, gelu="tanh"), randomised(torch.float64, gelu="exact")
    exact.load_state_dict(tanh.state_dict())
    x, _ = batch(tanh.vocab_size, 2, 16)
    with torch.no_grad():
        assert 1e-9 < (tanh(x)[0] - exact(x)[0]).abs().max() < 0.1


def test_loss_is_the_mean_over_targets_that_count():
    model = randomised(torch.float64)
    x, y = batch(model.vocab_size, 3, 16)
    y[0, 3:9] = y[2, 0] = y[:, -1] = -100  # transformers has no target for the last position
    logits, loss = model(x)[0], model(x, y)[1]
    counted = y != -100
    chosen = logits.log_softmax(-1)[counted].gather(-1, y[counted].unsqueeze(-1))
    torch.testing.assert_close(loss, -chosen.mean(), rtol=1e-10, atol=0)
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), y.flatten()), rtol=1e-10, atol=0)
    labels = torch.cat((x[:, :1], y[:, :-1]), dim=1)  # transformers shifts labels itself, and casts logits to float32
    theirs = in_transformers(model)(x, labels=labels).loss
    # float32 rounds each term of the log-sum-exp and each target.
    float32_error = (model.vocab_size + y.numel()) * torch.finfo(torch.float32).eps * logits.abs().max().item()
    torch.testing.assert_close(loss, theirs.double(), rtol=0, atol=float32_error)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"vocab_size": 65, "n_layer": 4, "d_model": 128}, id="65x128"),
        pytest.param({"vocab_size": 65, "n_layer": 2, "d_model": 256}, id="65x256"),
        pytest.param({"vocab_size": 512, "n_layer": 2, "d_model": 256, "bias": False}, id="512x256"),
        pytest.param({"vocab_size": 1000, "n_layer": 1, "d_model": 1024}, id="1000x1024"),
        pytest.param({"vocab_size": 1000, "n_layer": 2, "d_model": 512, "tie_embeddings": False}, id="untied"),
    ],
)
def test_the_initial_loss_is_that_of_a_uniform_guess(changes):
    model = GPT2(**{**TINY, "block_size": 128, **changes})
    x, y = batch(model.vocab_size, 16, 128)
    with torch.no_grad():
        loss = model(x, y)[1].item()
    assert loss == pytest.approx(math.log(model.vocab_size), abs=0.1)


@pytest.mark.slow
def test_the_initial_loss_of_the_124m_model():
    model = GPT2(**shipped())
    x, y = batch(50_257, 2, 128)
    with torch.no_grad():
        loss = model(x, y)[1].item()
    assert loss == pytest.approx(math.log(50_257), abs=0.1)


def test_the_124m_model_has_the_published_size():
    with torch.device("meta"):
        model = GPT2(**shipped())
    assert sum(param.numel() for param in model.parameters()) == 124_439_808


def test_without_bias_no_layer_has_one():
    model = GPT2(**{**TINY, "bias": False})
    assert [name for name, _ in model.named_parameters() if name.endswith("bias")] == []


@pytest.mark.parametrize("changed", [0, 7, 15])
def test_later_tokens_do_not_reach_earlier_logits(changed):
    model = randomised(torch.float64)
    x, _ = batch(model.vocab_size, 2, 16)
    other = x.clone()
    other[:, changed:] = (other[:, changed:] + 1) % model.vocab_size
    with torch.no_grad():
        before, after = model(x)[0], model(other)[0]
    torch.testing.assert_close(before[:, :changed], after[:, :changed], rtol=0, atol=1e-10)
    assert ((before - after)[:, changed:].abs().amax(-1) > 1e-6).all()


def test_the_first_token_reaches_every_logit():
    model = randomised(torch.float64)
    x, _ = batch(model.vocab_size, 1, 16)
    other = x.clone()
    other[:, 0] = (other[:, 0] + 1) % model.vocab_size
    with torch.no_grad():
        assert ((model(x)[0] - model(other)[0]).abs().amax(-1) > 1e-9).all()


@pytest.mark.parametrize("changes", VARIANTS)
def test_gradient_flows_to_every_parameter(changes):
    model = GPT2(**{**TINY, **changes})
    model(*batch(model.vocab_size, 4, 16))[1].backward()
    without = [name for name, param in model.named_parameters() if param.grad is None or not param.grad.any()]
    assert without == []


def test_an_input_that_is_too_long_names_the_key():
    model = GPT2(**TINY)
    assert model(torch.zeros(1, 16, dtype=torch.int64))[0].shape == (1, 16, 61)
    with pytest.raises(ValueError, match=r"17 tokens.*model\.block_size=16"):
        model(torch.zeros(1, 17, dtype=torch.int64))


def test_a_bad_head_count_names_the_key():
    with pytest.raises(ValueError, match=r"model\.d_model=32.*model\.n_head=5"):
        GPT2(**{**TINY, "n_head": 5})


def test_dropout_acts_only_in_training():
    model = randomised(torch.float64, dropout=0.5)
    plain = randomised(torch.float64)
    plain.load_state_dict(model.state_dict())
    x, _ = batch(model.vocab_size, 2, 16)
    with torch.no_grad():
        expected = plain(x)[0]
        assert not torch.equal(model.train()(x)[0], model(x)[0])
        assert torch.equal(model.eval()(x)[0], expected)
        assert torch.equal(plain.train()(x)[0], expected)


@pytest.mark.parametrize("changes", VARIANTS)
def test_flops_match_the_count_of_torch(changes):
    model = GPT2(**{**TINY, **changes})
    x, y = batch(model.vocab_size, 2, 16)
    # torch does not count products of the fused CPU kernel. The math backend also multiplies the masked half.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x, y)[1].backward()
    assert counter.get_total_flops() == model.flops_per_token(16) * x.numel()
