"""Llama matches transformers in float64, and has the right sizes, initial loss, causality and FLOPs."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmtrain.model.llama import Llama, rope_table
from lmtrain.verify.device.numbers.rounding import FLOAT32, rounding_error

TINY: dict[str, Any] = {
    "vocab_size": 61,
    "block_size": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_kv_head": None,
    "d_model": 32,
    "d_ff": 48,
}
VARIANTS = [
    pytest.param({}, id="multi-head"),
    pytest.param({"n_kv_head": 2}, id="grouped-query"),
    pytest.param({"n_kv_head": 1}, id="multi-query"),
    pytest.param({"tie_embeddings": False}, id="untied"),
    pytest.param({"rope_base": 500_000.0, "norm_eps": 1e-3}, id="other-rope-and-eps"),
    pytest.param({"n_kv_head": 2, "tie_embeddings": False, "n_layer": 3, "d_model": 24, "d_ff": 20}, id="all-at-once"),
]


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1337)
        yield


def production() -> dict[str, Any]:
    config = OmegaConf.load(Path(__file__).parents[2] / "conf/model/llama_50m.yaml")
    config.update(block_size=512)
    return {key: value for key, value in OmegaConf.to_container(config, resolve=True).items() if key != "_target_"}


def randomised(dtype: torch.dtype, **changes: Any) -> Llama:
    """Return a model whose parameters are all random: with the initial norm gains, swapped names stay hidden."""
    model = Llama(**{**TINY, **changes}).to(dtype)
    with torch.no_grad():
        for param in model.parameters():
            param.normal_(std=0.3)
    return model


def in_transformers(model: Llama, **changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM  # takes seconds, and not every test needs it

    config = {**TINY, "rope_base": 10000.0, "norm_eps": 1e-5, "tie_embeddings": True, **changes}
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config["vocab_size"],
            max_position_embeddings=config["block_size"],
            num_hidden_layers=config["n_layer"],
            num_attention_heads=config["n_head"],
            num_key_value_heads=config["n_kv_head"] or config["n_head"],
            hidden_size=config["d_model"],
            intermediate_size=config["d_ff"],
            rms_norm_eps=config["norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_base"]},
            tie_word_embeddings=config["tie_embeddings"],
            attn_implementation="sdpa",  # eager rounds its softmax to float32
        )
    ).to(model.embedding.weight.dtype)
    names = {
        "attention_norm": "input_layernorm",
        "attention.q": "self_attn.q_proj",
        "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj",
        "attention.o": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
    }
    ours = model.state_dict()
    state = {"model.embed_tokens.weight": ours["embedding.weight"], "model.norm.weight": ours["norm.weight"]}
    state["lm_head.weight"] = ours.get("output.weight", ours["embedding.weight"])
    for layer in range(config["n_layer"]):
        for name, their_name in names.items():
            state[f"model.layers.{layer}.{their_name}.weight"] = ours[f"layers.{layer}.{name}.weight"]
    theirs.load_state_dict(state, strict=True)
    return theirs.eval()


def batch(vocab_size: int, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(vocab_size, (rows, length + 1))
    return tokens[:, :-1], tokens[:, 1:].clone()


@pytest.mark.parametrize("changes", VARIANTS)
def test_logits_match_transformers_in_float64(changes, monkeypatch):
    def unrounded(norm, x):  # the formula of transformers without its cast to float32
        return norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon))

    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    monkeypatch.setattr(LlamaRMSNorm, "forward", unrounded)
    model = randomised(torch.float64, **changes)
    x, _ = batch(model.vocab_size, 3, model.block_size)
    with torch.no_grad():
        ours, theirs = model(x)[0], in_transformers(model, **changes)(x).logits
    assert ours.dtype == torch.float64
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)  # a million roundings in float64


@pytest.mark.parametrize("changes", VARIANTS)
def test_logits_match_unchanged_transformers_in_float32(changes):
    model = randomised(torch.float32, **changes)
    exact = copy.deepcopy(model).double()
    x, _ = batch(model.vocab_size, 3, 11)
    with torch.no_grad():
        ours, theirs = model(x)[0], in_transformers(model, **changes)(x).logits
        (error,) = rounding_error(lambda: [exact(x)[0]], TINY["d_ff"], FLOAT32)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2 * error)  # either may be that far off


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
        pytest.param({"vocab_size": 512, "n_layer": 2, "d_model": 256}, id="512x256"),
        pytest.param({"vocab_size": 1000, "n_layer": 1, "d_model": 1024}, id="1000x1024"),
        pytest.param({"vocab_size": 1000, "n_layer": 2, "d_model": 512, "tie_embeddings": False}, id="untied"),
    ],
)
def test_the_initial_loss_is_that_of_a_uniform_guess(changes):
    model = Llama(**{**TINY, "block_size": 128, "d_ff": 4 * changes["d_model"], **changes})
    x, y = batch(model.vocab_size, 16, 128)
    with torch.no_grad():
        loss = model(x, y)[1].item()
    assert loss == pytest.approx(math.log(model.vocab_size), abs=0.1)


@pytest.mark.slow
def test_the_initial_loss_of_the_production_model():
    model = Llama(**production())
    x, y = batch(32_000, 2, 256)
    with torch.no_grad():
        loss = model(x, y)[1].item()
    assert loss == pytest.approx(math.log(32_000), abs=0.1)


def test_the_production_model_has_the_sizes_of_the_design():
    with torch.device("meta"):
        model = Llama(**production())
    matrices = [param.numel() for param in model.parameters() if param.ndim >= 2]
    vectors = [param.numel() for param in model.parameters() if param.ndim < 2]
    assert (len(matrices), sum(matrices)) == (113, 50_036_736)
    assert (len(vectors), sum(vectors)) == (33, 12_672)


def test_residual_branches_and_wide_heads_start_smaller():
    model = Llama(**{**TINY, "n_layer": 8, "d_model": 512, "d_ff": 512, "tie_embeddings": False})
    std = {name: param.std().item() for name, param in model.named_parameters() if param.ndim >= 2}
    assert std["layers.3.attention.q.weight"] == pytest.approx(0.02, rel=0.05)
    assert std["layers.3.attention.o.weight"] == pytest.approx(0.02 / 4, rel=0.05)
    assert std["layers.3.mlp.down.weight"] == pytest.approx(0.02 / 4, rel=0.05)
    assert std["embedding.weight"] == pytest.approx(0.02, rel=0.05)
    assert std["output.weight"] == pytest.approx(0.35 / math.sqrt(512), rel=0.05)


def test_the_state_dict_contains_only_parameters():
    model = Llama(**TINY)
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("changed", [0, 7, 15])
def test_later_tokens_do_not_reach_earlier_logits(changed):
    model = randomised(torch.float64, n_kv_head=2)
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


def test_rope_rotates_by_position():
    cos, sin = rope_table(block_size=5, d_head=8, base=100.0)
    assert cos.shape == sin.shape == (5, 8)
    assert cos.dtype == torch.float32
    for position in range(5):
        for i in range(8):
            angle = position / 100.0 ** (2 * (i % 4) / 8)  # at most 4, and exact or below 1.3: float32 errs by 5e-7
            assert cos[position, i].item() == pytest.approx(math.cos(angle), abs=1e-6)
            assert sin[position, i].item() == pytest.approx(math.sin(angle), abs=1e-6)


@pytest.mark.parametrize("changes", VARIANTS)
def test_gradient_flows_to_every_parameter(changes):
    model = Llama(**{**TINY, **changes})
    model(*batch(model.vocab_size, 4, 16))[1].backward()
    without = [name for name, param in model.named_parameters() if param.grad is None or not param.grad.any()]
    assert without == []


def test_an_input_that_is_too_long_names_the_key():
    model = Llama(**TINY)
    assert model(torch.zeros(1, 16, dtype=torch.int64))[0].shape == (1, 16, 61)
    with pytest.raises(ValueError, match=r"17 tokens.*model\.block_size=16"):
        model(torch.zeros(1, 17, dtype=torch.int64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 30}, r"model\.d_model=30.*model\.n_head=4"),
        ({"d_model": 12}, r"model\.d_model=12.*model\.n_head=4.*RoPE"),  # a head width of 3
        ({"n_kv_head": 3}, r"model\.n_kv_head=3.*model\.n_head=4"),
        ({"n_kv_head": 8}, r"model\.n_kv_head=8.*model\.n_head=4"),
    ],
)
def test_bad_head_counts_name_the_key(changes, message):
    with pytest.raises(ValueError, match=message):
        Llama(**{**TINY, **changes})


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
    model = Llama(**{**TINY, **changes})
    x, y = batch(model.vocab_size, 2, 16)
    # torch does not count products of the fused CPU kernel. The math backend also multiplies the masked half.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x, y)[1].backward()
    assert counter.get_total_flops() == model.flops_per_token(16) * x.numel()
