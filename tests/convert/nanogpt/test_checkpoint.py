"""nanoGPT's weights and optimizer state mean the same under lmtrain's names, and a wrong file gives a clear error."""

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.nanogpt_model import CONFIG, SIZES, Harmful, Training
from torch import Tensor
from torch.nn import functional as F

from lmtrain.checkpoint.optimizer_state import load_optimizer_state
from lmtrain.convert.nanogpt.checkpoint import (
    NanoGPTCheckpoint,
    check_weights_fit,
    our_name,
    parse_nanogpt_checkpoint,
    read_nanogpt_checkpoint,
    their_name,
)
from lmtrain.convert.nanogpt.settings import model_overrides
from lmtrain.model.gpt2 import GPT2
from lmtrain.optimizer.adamw import adamw


def gpt2(source: NanoGPTCheckpoint) -> GPT2:
    """Build the model that the overrides describe, and load the weights of the checkpoint."""
    overrides = model_overrides(source.model_args)
    assert overrides.pop("model") == "gpt2"
    model = GPT2(**{key.removeprefix("model."): value for key, value in overrides.items()})
    check_weights_fit(source.weights, model)
    model.to(next(iter(source.weights.values())).dtype).load_state_dict(dict(source.weights))
    return model


def batch(seed: int = 5) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 61, (3, 17), generator=torch.Generator().manual_seed(seed))
    return ids[:, :-1], ids[:, 1:]


@pytest.mark.parametrize("bias", [False, True])
def test_logits_are_equal_in_float64(bias: bool) -> None:
    theirs = Training(bias=bias).train(3).double()
    source = parse_nanogpt_checkpoint(theirs.content())
    x, _ = batch()
    logits, _ = gpt2(source)(x)
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, theirs.model(x), rtol=0, atol=1e-10)  # 100,000 roundings in float64


@pytest.mark.parametrize("bias", [False, True])
def test_the_next_steps_are_equal_in_float64(bias: bool) -> None:
    theirs = Training(bias=bias).train(4).double()
    source = parse_nanogpt_checkpoint(theirs.content())
    ours = gpt2(source)
    named = list(ours.named_parameters())
    optimizer = adamw(
        named,
        lr=1e-2,
        weight_decay=source.adamw["optimizer.weight_decay"],
        betas=tuple(source.adamw["optimizer.betas"]),
        eps=source.adamw["optimizer.eps"],
    )
    load_optimizer_state(optimizer, named, source.optimizer, {})
    for group in theirs.optimizer.param_groups:
        group["lr"] = 1e-2
    before = {name: param.detach().clone() for name, param in named}
    for number in range(3):
        x, y = batch(number)
        ours(x, y)[1].backward()
        F.cross_entropy(theirs.model(x).flatten(0, 1), y.flatten()).backward()
        for each in (optimizer, theirs.optimizer):
            each.step()
            each.zero_grad()
    for name, param in theirs.model.named_parameters():
        moved = dict(named)[our_name(name)]
        # Where gradients cancel to 1e-15, AdamW divides by its eps of 1e-8: 1e-9 per step at a learning rate of 1e-2.
        torch.testing.assert_close(moved, param, rtol=0, atol=1e-8)
        assert not torch.equal(moved, before[our_name(name)])


def test_moments_and_step_counters_belong_to_their_parameter() -> None:
    theirs = Training(bias=True).train(3)
    source = parse_nanogpt_checkpoint(theirs.content())
    assert len(source.optimizer) == 3 * len(source.weights)
    for name, param in theirs.model.named_parameters():
        for key, value in theirs.optimizer.state[param].items():
            assert torch.equal(source.optimizer[f"{our_name(name)}/{key}"], value)


def test_prefixes_masks_and_integer_step_counters_of_other_versions_are_accepted() -> None:
    content = Training(bias=True).train(2).content()
    expected = parse_nanogpt_checkpoint(content)
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 16, 16).tril() for layer in range(2)}
    content["model"] = {f"_orig_mod.module.{name}": value for name, value in {**content["model"], **masks}.items()}
    for state in content["optimizer"]["state"].values():
        state["step"] = int(state["step"])
    found = parse_nanogpt_checkpoint(content)
    assert list(found.weights) == list(expected.weights)
    for name in expected.weights:
        assert torch.equal(found.weights[name], expected.weights[name])
        assert torch.equal(found.optimizer[f"{name}/step"], expected.optimizer[f"{name}/step"])


def test_names_are_converted_in_both_directions() -> None:
    names = list(Training(bias=True).model.state_dict())
    names.remove("lm_head.weight")
    ours = [our_name(name) for name in names]
    assert sorted(ours) == sorted(GPT2(64, 16, 2, 2, 32).state_dict())
    assert [their_name(name) for name in ours] == names
    for name in ("transformer.h.0.attn.rotary.weight", "transformer.h.0.ln_1.gain", "transformer.x.weight", "weight"):
        assert our_name(name) == ""
    assert their_name("layers.0.attention.q.weight") == "layers.0.attention.q.weight"


def overrides(**changes: Any) -> dict[str, Any]:
    content = Training(bias=False).train(1).content()
    content["config"] = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    return parse_nanogpt_checkpoint(content).overrides()


def test_settings_become_overrides() -> None:
    assert overrides() == {
        "model": "gpt2",
        "model.n_layer": 2,
        "model.n_head": 2,
        "model.d_model": 32,
        "model.block_size": 16,
        "model.vocab_size": 64,
        "model.bias": False,
        "model.dropout": 0.0,
        "model.gelu": "exact",
        "model.tie_embeddings": True,
        "data": "tokens",
        "data.order": "random",
        "data.batch_size": 4,
        "data.block_size": 16,
        "trainer.gradient_accumulation_steps": 2,
        "trainer.max_steps": 20,
        "trainer.grad_clip": 1.0,
        "trainer.eval_interval": 5,
        "trainer.eval_batches": 2,
        "trainer.log_interval": 1,
        "optimizer.lr": 1e-2,
        "optimizer.weight_decay": 0.1,
        "optimizer.betas": [0.9, 0.99],
        "optimizer.eps": 1e-8,
        "scheduler.warmup_steps": 3,
        "scheduler.min_lr": 1e-3,
        "scheduler.max_steps": 20,
        "system.dtype": "float32",
    }


def test_settings_whose_meaning_depends_on_others() -> None:
    for device, dtype in (("cuda:1", "float16"), (None, "float16"), ("mps", "float32")):
        assert overrides(device=device)["system.dtype"] == dtype
    constant = overrides(decay_lr=False)
    assert (constant["scheduler"], constant["scheduler.warmup_steps"]) == ("constant", 0)
    assert not constant.keys() & {"scheduler.min_lr", "scheduler.max_steps"}
    # nanoGPT continues with the optimizer's own settings, even if its config was changed for a resume.
    assert overrides(weight_decay=0.7, beta2=0.5)["optimizer.weight_decay"] == 0.1
    assert overrides(weight_decay=0.7, beta2=0.5)["optimizer.betas"] == [0.9, 0.99]


def test_a_checkpoint_without_config_still_has_model_and_optimizer_settings() -> None:
    content = Training(bias=False).train(1).content()
    assert parse_nanogpt_checkpoint(content).tokens_per_step() == 2 * 4 * 16
    del content["config"]
    source = parse_nanogpt_checkpoint(content)
    assert source.tokens_per_step() is None
    assert {key.split(".")[0] for key in source.overrides()} == {"model", "data", "optimizer"}
    assert "optimizer.lr" not in source.overrides()


def test_a_loss_that_was_never_measured_is_none() -> None:
    content = Training(bias=False).train(1).content()
    assert parse_nanogpt_checkpoint(content).best_val_loss == 3.25
    for nothing in (1e9, math.nan, torch.tensor(math.inf)):
        assert parse_nanogpt_checkpoint({**content, "best_val_loss": nothing}).best_val_loss is None


Change = Callable[[dict[str, Any]], object]
WTE, C_FC = "transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight"


def untie(content: dict[str, Any]) -> None:
    content["model"]["lm_head.weight"] = content["model"][WTE] + 1


def undecayed_embeddings(content: dict[str, Any]) -> None:
    decayed, others = content["optimizer"]["param_groups"]
    others["params"] += [decayed["params"].pop(0)]


def swap_states(content: dict[str, Any]) -> None:
    state = content["optimizer"]["state"]
    state[0], state[2] = state[2], state[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [c.pop(key) for key in ("optimizer", "iter_num")], "optimizer, iter_num missing (it has model, "),
        (lambda c: c.update(model=[1]), "model is a list, not a dict"),
        (lambda c: c.update(config="x"), "config is a str, not a dict"),
        (lambda c: c.update(iter_num=-1), "iter_num=-1: not a number of iterations"),
        (lambda c: c.update(iter_num=10**30), "iter_num=1000000000000000000000000000000: not a number of iterations"),
        (lambda c: c.update(best_val_loss=10**400), "best_val_loss is not a number that fits into a float"),
        (lambda c: c.update(best_val_loss="low"), "best_val_loss is a str, not a number"),
        (lambda c: c["model_args"].pop("n_embd"), "model_args has no n_embd"),
        (lambda c: c["model_args"].update(use_rmsnorm=True), "model_args has use_rmsnorm, which nanoGPT's GPT-2 does"),
        (lambda c: c["model_args"].update(n_head="2"), "model_args.n_head='2': not a number"),
        (lambda c: c["model_args"].update(n_head=0), "model_args.n_head=0: not a size"),
        (lambda c: c["model_args"].update(n_head=5), "model.d_model=32: must be a multiple of model.n_head=5"),
        (lambda c: c["model"].pop(C_FC), f"the weights do not fit the model: {C_FC} missing"),
        (lambda c: c["model"].update({C_FC: torch.ones(5)}), f"{C_FC} is 5 instead of 128 × 32"),
        (lambda c: c["model_args"].update(bias=True), "transformer.h.0.ln_1.bias, transformer.h.0.attn.c_attn.bias, "),
        (lambda c: c.update(model=dict(sorted(c["model"].items()))), "they are not in nanoGPT's order"),
        (lambda c: c["model_args"].update(n_layer=10**9), "n_layer=1000000000, but the model has 2 blocks"),
        (lambda c: c["model_args"].update(n_embd=10**9), "vocab_size × n_embd = 64 × 1000000000, but transformer.wte"),
        (lambda c: c["model_args"].update(block_size=32), "block_size × n_embd = 32 × 32, but transformer.wpe.weight"),
        (lambda c: c["model"].update(fc=torch.ones(1)), "not nanoGPT's GPT-2: unexpected fc"),
        (
            lambda c: c.update(model={f"fc{i}.weight": i for i in range(9)}),
            "fc1.weight, fc2.weight and 6 more",
        ),
        (lambda c: c["model"].pop(WTE), "transformer.wte.weight is missing"),
        (untie, "lm_head.weight is not transformer.wte.weight"),
        (lambda c: c["model"].update({"lm_head.weight": "x"}), "lm_head.weight is a str, not a tensor"),
        (
            lambda c: c["model"].update({"lm_head.weight": c["model"][WTE].half()}),
            "lm_head.weight is not transformer.w",
        ),
        (lambda c: c["model"][WTE].fill_(math.nan), "lm_head.weight: numbers that are not finite"),
        (lambda c: c["model"][C_FC].fill_(math.inf), f"{C_FC}: numbers that are not finite; the model has diverged"),
        (lambda c: c["model"].update({C_FC: c["model"][C_FC].int()}), f"{C_FC} has numbers of type int32; quantised"),
        (
            lambda c: c["optimizer"]["state"][1]["exp_avg"].fill_(math.nan),
            "optimizer: exp_avg of state 1, of transformer.wpe.weight: numbers that are not finite",
        ),
        (lambda c: c["optimizer"]["state"][1].update(step=math.nan), "step of state 1 is nan, not a number of iter"),
        (lambda c: c["optimizer"].pop("state"), "optimizer: not the state of AdamW"),
        (lambda c: c["optimizer"].update(param_groups=[3]), "optimizer: not the state of AdamW"),
        (
            lambda c: c["optimizer"]["param_groups"].pop(),
            "groups of 10 tensors, where nanoGPT's AdamW decays 10",
        ),
        (undecayed_embeddings, "optimizer: groups of 9 and 6 tensors, where nanoGPT's AdamW decays 10 and not the"),
        (swap_states, "optimizer: exp_avg of state 0 is 96 × 32, but transformer.wte.weight is 64 × 32"),
        (lambda c: c["optimizer"]["state"].pop(1), "optimizer: state 1, of transformer.wpe.weight, is not step"),
        (
            lambda c: c["optimizer"]["state"].update({1: 5}),
            "optimizer: state 1, of transformer.wpe.weight, is not step",
        ),
        (lambda c: c["optimizer"]["state"][1].update(step="x"), "optimizer: step of state 1 is a str, not a number"),
        (lambda c: c["optimizer"]["param_groups"][0].update(betas=0.9), "optimizer: not the state of AdamW"),
        (lambda c: c["optimizer"]["param_groups"][0].update(params=[[1]]), "params of a group are not indices"),
        (lambda c: c["config"].update(batch_size=math.inf), "config.batch_size=inf: not a number"),
        (lambda c: c["config"].update(batch_size=10**30), "config.batch_size=1000000000000000000000000000000: not a"),
        (lambda c: c["config"].update(batch_size="4,5"), "config.batch_size='4,5': not a number"),
        (lambda c: c["config"].update(dtype="float8"), "config.dtype='float8': not one of float32, bfloat16, float16"),
    ],
)
def test_the_message_names_the_mistake(change: Change, message: str) -> None:
    content = Training(bias=False).train(1).content()
    parse_nanogpt_checkpoint(content).overrides()
    change(content)
    with pytest.raises(ValueError, match=r"^.") as caught:
        parse_nanogpt_checkpoint(content).overrides()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_weights_that_do_not_fit_the_model_are_reported_with_nanogpts_names() -> None:
    source = parse_nanogpt_checkpoint(Training(bias=True).train(1).content())
    wide = GPT2(64, 16, 3, 2, 32, d_ff=64, bias=False)
    with pytest.raises(ValueError, match="do not fit") as caught:
        check_weights_fit(source.weights, wide)
    message = str(caught.value)
    assert "transformer.h.2.ln_1.weight, transformer.h.2.attn.c_attn.weight, " in message
    assert "transformer.h.0.ln_1.bias" in message
    assert "transformer.h.0.mlp.c_fc.weight is 128 × 32 instead of 64 × 32" in message


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trap, path = tmp_path / "trap", tmp_path / "ckpt.pt"
    torch.save({**Training(bias=False).train(1).content(), "extra": Harmful(trap)}, path)
    with pytest.raises(
        ValueError, match=r"ckpt.pt: contains more than tensors and plain values .*; not loaded"
    ) as caught:
        read_nanogpt_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # shows that the code would have run


def wide_by_repetition(content: dict[str, Any]) -> None:
    """Claim 64,000 × 60,000 weights that are all the same number in memory."""
    content["model"][WTE] = content["model"]["lm_head.weight"] = torch.zeros(1).expand(64_000, 60_000)
    content["model_args"].update(vocab_size=64_000, n_embd=60_000)


def moments_by_repetition(content: dict[str, Any]) -> None:
    content["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1).expand(64_000, 60_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wide_by_repetition, "its tensors would take 30,720,"),
        (moments_by_repetition, "its tensors would take 15,360,"),
        (lambda c: c["model"].update({C_FC: torch.eye(3).to_sparse()}), r"a tensor of 3 × 3 is not a plain one \("),
        (lambda c: c["model"].update({C_FC: torch.empty(3, device="meta")}), r"a tensor of 3 is not a plain one \("),
    ],
)
def test_tensors_without_the_memory_they_claim_are_refused(change: Change, message: str, tmp_path: Path) -> None:
    content = Training(bias=False).train(1).content()
    change(content)
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match=rf"ckpt\.pt: {message}"):
        read_nanogpt_checkpoint(tmp_path / "ckpt.pt")


def test_a_compressed_file_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"model": torch.zeros(10_000_000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "ckpt.pt", "w") as small:
        for entry in plain.infolist():
            small.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "ckpt.pt").stat().st_size < 1_000_000
    with pytest.raises(ValueError, match=r"ckpt\.pt: compressed, with 40,000,.* bytes when unpacked"):
        read_nanogpt_checkpoint(tmp_path / "ckpt.pt")


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    whole = Training(bias=False).train(1).save(tmp_path / "out" / "ckpt.pt")
    assert read_nanogpt_checkpoint(whole).iter_num == 1
    for name, content in (("text.pt", b"hello"), ("empty.pt", b""), ("cut.pt", whole.read_bytes()[:9000])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: not a file of torch.save, or damaged") as caught:
            read_nanogpt_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"nowhere.pt: no such file$"):
        read_nanogpt_checkpoint(tmp_path / "nowhere.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list.pt: a list, not nanoGPT's dict"):
        read_nanogpt_checkpoint(tmp_path / "list.pt")
    assert SIZES["n_layer"] == len(
        {name.split(".")[1] for name in read_nanogpt_checkpoint(whole).weights if "layers" in name}
    )
