"""Models of transformers: their own logits and losses, masked documents, FLOPs, and mistakes in a config."""

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.command_line import Cli
from support.tiny_trainer import timeless_metrics
from support.tokens import TINY, write_tokens
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmtrain.checkpoint.files import load_checkpoint
from lmtrain.files.limited import read_json
from lmtrain.model.llama import Llama
from lmtrain.model.transformers_model import TransformersModel
from lmtrain.optimizer.rules import role_of

pytest.importorskip("transformers")

V, T = 97, 16
BASE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**BASE, "intermediate_size": 64, "num_key_value_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "gpt2": {**BASE, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gemma2": {**GROUPED, "head_dim": 8, "sliding_window": 4},  # limits its logits
    "cohere": {**GROUPED, "logit_scale": 0.25},  # multiplies its logits
    "phi": GROUPED,  # its output layer has a bias
    "gpt_neox": {**BASE, "intermediate_size": 64},
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**GROUPED, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


EXPERTS = ("mixtral", "qwen3_moe")  # whose products torch has only in 32 and 16 bits
SINGLE = {"rtol": 1e-4, "atol": 1e-5}  # a hundred roundings of float32


def make(model_type: str, changes: dict[str, Any] | None = None, **settings: Any) -> TransformersModel:
    """Return a model in float64, if transformers has all of it in float64."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if model_type in EXPERTS else torch.float64)
    try:
        return TransformersModel({"model_type": model_type, **CONFIGS[model_type], **(changes or {})}, V, T, **settings)
    finally:
        torch.set_default_dtype(torch.float32)


def close(model_type: str) -> dict[str, float]:
    """Return the tolerance of a comparison; Gemma computes some numbers in float32 also in float64."""
    return SINGLE if model_type in (*EXPERTS, "gemma2") else {"rtol": 1e-9, "atol": 1e-10}


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(1, V, (2, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("model_type", list(CONFIGS))
def test_logits_loss_and_gradients_are_those_of_transformers(model_type: str) -> None:
    ours, theirs = make(model_type), make(model_type).model
    x, y = tokens(), tokens(1)
    y[0, :3] = -100
    expected = theirs(x, use_cache=False).logits
    torch.testing.assert_close(ours(x)[0], expected, **close(model_type))
    logits, loss = ours(x, y)
    assert logits is None
    reference = F.cross_entropy(expected.flatten(0, 1), y.flatten())
    torch.testing.assert_close(loss, reference, check_dtype=False, rtol=1e-6, atol=0)  # it is in float32
    loss.backward()
    reference.backward()
    for (name, param), other in zip(ours.model.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(param.grad, other.grad, **SINGLE, msg=name)


@pytest.mark.parametrize(
    ("model_type", "plain"),
    [("llama", True), ("qwen3", True), ("mixtral", True), ("gemma2", False), ("cohere", False), ("phi", False)],
)
def test_the_loss_comes_in_chunks_where_the_logits_are_a_plain_product(model_type: str, plain: bool) -> None:
    assert make(model_type).plain_head == plain
    assert make(model_type, mask_documents=True, end_of_text=0).plain_head == plain


@pytest.mark.parametrize("model_type", list(CONFIGS))
def test_masked_documents_do_not_see_each_other(model_type: str) -> None:
    model = make(model_type, mask_documents=True, end_of_text=0).eval()
    x = tokens()
    x[:, 7] = 0
    other = x.clone()
    other[:, :7] = tokens(1)[:, :7]
    first, second = model(x)[0], model(other)[0]
    torch.testing.assert_close(first[:, 7:], second[:, 7:], **close(model_type))
    assert not torch.allclose(first[:, :7], second[:, :7])
    alone = model(x[:, 7:])[0]  # positions restart
    torch.testing.assert_close(first[:, 7:], alone, **close(model_type))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "mixtral"])
def test_a_later_token_changes_no_earlier_logit(model_type: str) -> None:
    model, x = make(model_type).eval(), tokens()
    other = x.clone()
    other[:, 10:] = tokens(1)[:, 10:]
    torch.testing.assert_close(model(x)[0][:, :10], model(other)[0][:, :10], **close(model_type))


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt2", "gemma2", "gpt_neox", "mixtral"])
def test_the_flops_agree_with_torchs_count(model_type: str) -> None:
    attention = "eager" if model_type == "gemma2" else None
    model = make(model_type, attention=attention)
    if model_type == "mixtral":  # torch does not count the products of many matrices at once
        model.model.set_experts_implementation("eager")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens(), tokens(1))[1].backward()
    assert model.flops_per_token(T) == pytest.approx(counter.get_total_flops() / tokens().numel(), rel=0.01)


def test_recomputed_layers_keep_every_bit() -> None:
    grads = []
    for recompute in ("none", "layer"):
        model = make("qwen3", recompute=recompute).train()
        model(tokens(), tokens(1))[1].backward()
        grads.append([param.grad for param in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_the_loss_for_balance_acts_on_the_gradient_alone() -> None:
    losses, grads = [], []
    for weight in (0.0, 0.5):
        changes = {"output_router_logits": True, "router_aux_loss_coef": weight}
        model = make("mixtral", changes).train()
        loss = model(tokens(), tokens(1))[1]
        loss.backward()
        losses.append(loss.detach())
        grads.append(next(param.grad for name, param in model.named_parameters() if "gate.weight" in name))
    assert torch.equal(*losses)
    assert not torch.allclose(*grads)


def test_a_llama_of_transformers_computes_what_ours_computes() -> None:
    theirs = make("llama", {"tie_word_embeddings": False, "rms_norm_eps": 1e-5})
    ours = Llama(V, T, n_layer=2, n_head=4, n_kv_head=2, d_model=32, d_ff=64, tie_embeddings=False).double()
    names = {"embedding.weight": "embed_tokens.weight", "norm.weight": "norm.weight", "output.weight": "lm_head.weight"}
    for layer in range(2):
        places = {
            "attention_norm": "input_layernorm",
            "mlp_norm": "post_attention_layernorm",
            **{f"attention.{name}": f"self_attn.{name}_proj" for name in "qkvo"},
            **{f"mlp.{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
        }
        names |= {f"layers.{layer}.{own}.weight": f"layers.{layer}.{other}.weight" for own, other in places.items()}
    found = theirs.model.state_dict()
    values = {own: found[other if other.startswith("lm_head") else f"model.{other}"] for own, other in names.items()}
    ours.load_state_dict({name: value.clone() for name, value in values.items()})
    x, y = tokens(), tokens(1)
    # RoPE's tables are computed in float32 in both.
    torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours(x, y)[1], theirs(x, y)[1], rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("model_type", "roles"),
    [
        ("llama", {"embed_tokens.weight": "embedding", "lm_head.weight": "output", "q_proj.weight": "hidden"}),
        ("gpt2", {"wte.weight": "embedding", "wpe.weight": "embedding", "c_attn.weight": "hidden"}),
        ("gpt_neox", {"embed_in.weight": "embedding", "lm_head.weight": "output", "norm.weight": "vector"}),
    ],
)
def test_parameters_have_the_right_roles(model_type: str, roles: dict[str, str]) -> None:
    named = dict(make(model_type).named_parameters())
    for end, role in roles.items():
        found = {role_of(name, param.ndim) for name, param in named.items() if name.endswith(end)}
        assert found == {role}, end


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        ({"model_type": "lama"}, {}, r"model_type=lama: transformers has no such causal model; did you mean llama"),
        ({}, {}, r"model_type=None: transformers has no such causal model; such as llama"),
        ({"model_type": "llama", "hidden_sise": 4}, {}, r"hidden_sise: llama has no such field; did you mean hidden_"),
        ({"model_type": "llama", "vocab_size": 4}, {}, r"vocab_size: is set by lmtrain; give model\.vocab_size"),
        ({"model_type": "llama", "auto_map": {}}, {}, r"auto_map: is set by lmtrain; leave it out"),
        ({"model_type": "llama", **GROUPED, "num_attention_heads": 5}, {}, r"model\.config"),
        ({"model_type": "bert", **BASE}, {}, r"model_type=bert: its tokens see later ones.*is_decoder=true"),
        ({"model_type": "roberta", **BASE}, {}, r"model\.config"),
        ({"model_type": "llama", **GROUPED, "hidden_size": 0}, {}, r"model\.config"),
        ({"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1}, {"mask_documents": True, "end_of_text": 0},
         r"model\.mask_documents=true: model_type=mamba does not keep attention inside documents"),
        ({"model_type": "gemma2", **CONFIGS["gemma2"]}, {"attention": "sdpa"}, r"model_type=gemma2: Gemma2ForCausalLM"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_with_its_key(config: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformersModel(config, V, T, **settings)


def test_short_sequences_are_enough_for_the_trial() -> None:
    torch.manual_seed(0)
    model = TransformersModel({"model_type": "gpt2", **BASE}, V, 4)
    assert model(tokens()[:, :4])[0].shape == (2, 4, V)


def test_more_tokens_than_the_block_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"17 tokens are more than model\.block_size=16"):
        make("llama")(torch.ones((1, 17), dtype=torch.int64))


def test_without_the_package_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs the package transformers; pip install 'lmtrain\[transformers\]'"):
        make("llama")


@pytest.mark.slow
def test_a_run_is_resumed_bit_for_bit_sampled_and_evaluated(cli: Cli) -> None:
    data = write_tokens(cli.folder / "data")
    sizes = {"hidden_size": 32, "head_dim": 8, "num_hidden_layers": 2, "intermediate_size": 64}
    choice = ["model=transformers", *(f"model.config.{name}={size}" for name, size in sizes.items()),
              "+model.config.rms_norm_eps=1e-5"]  # fmt: skip
    plain = [each for each in TINY if not each.startswith("model")]

    def run(*arguments: str) -> str:
        done = cli(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(*plain, *choice, f"data.path={data}", "hydra.run.dir=whole")
    run(*plain, *choice, f"data.path={data}", "trainer.max_steps=8", "scheduler.max_steps=12", "hydra.run.dir=parts")
    run("resume=parts", "trainer.max_steps=12")
    whole, parts = cli.folder / "whole", cli.folder / "parts"
    assert timeless_metrics(whole) == timeless_metrics(parts)
    ends = [load_checkpoint(run / "checkpoints" / "step-00000012").tensors["model"] for run in (whole, parts)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert "transformers" in read_json(whole / "environment.json")["packages"]
    assert "loss" in run("evaluate", "whole")
