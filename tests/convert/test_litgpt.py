"""Folders of litgpt, with its names and both of its layouts of queries, are read with every bit and the same logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.other_checkpoints import litgpt_weights, write_litgpt
from torch import Tensor, nn

from lmtrain.convert.imported_model import check_fits
from lmtrain.convert.litgpt import read_litgpt_folder
from lmtrain.data.stored_tokenizer import save_tokenizer
from lmtrain.data.tokenizer import tokenizer_of_characters
from lmtrain.model.llama import Llama


def logits_of_litgpt(tensors: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Return the logits (T, V) as `litgpt/model.py` computes them, in float64."""
    weight = {name.removesuffix(".weight"): value.double() for name, value in tensors.items()}
    x = weight["transformer.wte"][ids]
    T = len(ids)
    angle = torch.arange(T).double()[:, None] / 500 ** (torch.arange(0, 8, 2).double() / 8)
    cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight[name]

    def rope(x: Tensor) -> Tensor:
        return x * cos + torch.cat([-x[..., 4:], x[..., :4]], -1) * sin

    for number in range(2):
        block = f"transformer.h.{number}"
        q, k, v = (norm(x, f"{block}.norm_1") @ weight[f"{block}.attn.qkv"].T).split([32, 16, 16], dim=-1)
        q, k, v = (part.view(T, -1, 8).transpose(0, 1) for part in (q, k, v))
        k, v = (part.repeat_interleave(2, 0) for part in (rope(k), v))
        scores = (rope(q) @ k.transpose(1, 2) / 8**0.5).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        x = x + (scores.softmax(-1) @ v).transpose(0, 1).reshape(T, 32) @ weight[f"{block}.attn.proj"].T
        y = norm(x, f"{block}.norm_2")
        hidden = F.silu(y @ weight[f"{block}.mlp.fc_1"].T) * (y @ weight[f"{block}.mlp.fc_2"].T)
        x = x + hidden @ weight[f"{block}.mlp.proj"].T
    return norm(x, "transformer.ln_f") @ weight["lm_head"].T


def our_model(folder: Path) -> nn.Module:
    found = read_litgpt_folder(folder)
    options = {key.removeprefix("model."): value for key, value in found.settings.items() if key != "model"}
    model = Llama(**options)  # type: ignore[arg-type]
    check_fits(found.weights, model, found.their_name)
    model.load_state_dict(dict(found.weights))
    return model.double()


@pytest.mark.parametrize("inside", [False, True])
def test_the_logits_are_those_of_litgpt(tmp_path: Path, inside: bool) -> None:
    tensors = litgpt_weights()
    ids = torch.randint(64, (20,), generator=torch.Generator().manual_seed(1))
    model = our_model(write_litgpt(tmp_path / "lit", {"model": tensors} if inside else tensors))
    with torch.no_grad():
        logits = model(ids[None])[0][0]
    torch.testing.assert_close(logits, logits_of_litgpt(tensors, ids), rtol=1e-5, atol=1e-5)


def test_the_older_layout_of_queries_gives_the_same_model(tmp_path: Path) -> None:
    tensors = litgpt_weights()
    older = {}
    for name, value in tensors.items():
        if name.endswith("attn.qkv.weight"):
            q, k, v = value.view(8, 8, 32).split([4, 2, 2])
            groups = [torch.cat([q[2 * group : 2 * group + 2], k[group, None], v[group, None]]) for group in (0, 1)]
            older[name.replace("attn.qkv", "attn.attn")] = torch.cat(groups).reshape(64, 32)
        else:
            older[name] = value
    new, old = our_model(write_litgpt(tmp_path / "new", tensors)), our_model(write_litgpt(tmp_path / "old", older))
    for (name, one), other in zip(new.state_dict().items(), old.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_the_tokenizer_comes_along_or_is_refused(tmp_path: Path) -> None:
    folder = write_litgpt(tmp_path / "lit", litgpt_weights())
    save_tokenizer(folder, tokenizer_of_characters({chr(97 + number): number for number in range(20)}))
    assert read_litgpt_folder(folder).tokenizer is not None
    save_tokenizer(folder, tokenizer_of_characters({chr(97 + number): number for number in range(65)}))
    with pytest.raises(ValueError, match="has 65 ids, but the model has only 64; it is not the tokenizer"):
        read_litgpt_folder(folder)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"norm_class_name": "LayerNorm", "bias": True}, "norm_class_name=LayerNorm, bias=True: lmtrain has no such"),
        ({"name": "Gemma-2b"}, "Gemma's norms: lmtrain has no such model"),
        ({"n_expert": 8}, "n_expert=8: lmtrain has no such model"),
        ({"n_embd": 0}, "n_embd=0: not a size"),
        ({"n_layer": 2 * 10**9}, "n_layer=2000000000: not a size from 1 to 16,777,216"),
        ({"n_query_groups": "a"}, "n_query_groups=a: not a size"),
        ({"n_query_groups": 3}, "n_query_groups=3: not a divisor of n_head=4"),
        ({"norm_eps": None}, "norm_eps=None: not a number of at least 0"),
        ({"rope_base": "x"}, "rope_base=x: not a number of at least 0"),
        ({"head_size": 16}, "head_size=16: lmtrain's heads share n_embd=32 among n_head=4"),
    ],
)
def test_another_model_is_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"model_config.yaml: {message}"):
        read_litgpt_folder(write_litgpt(tmp_path / "lit", litgpt_weights(), **changed))


def test_mistakes_in_the_weights_are_one_line(tmp_path: Path) -> None:
    tensors = litgpt_weights()
    for change, message in (
        ({"transformer.h.0.attn.norm_q.weight": torch.ones(8)}, "transformer.h.0.attn.norm_q.weight unexpected"),
        ({"transformer.h.0.attn.qkv.weight": torch.ones(60, 32)}, "qkv.weight is 60 × 32 instead of 64 × 32"),
        ({"transformer.h.0.attn.qkv.weight": torch.tensor(1.0)}, "qkv.weight is a single number instead of 64 × 32"),
        ({"transformer.h.0.attn.attn.bias": torch.ones(64)}, "transformer.h.0.attn.attn.bias unexpected"),
        ({7: torch.ones(1)}, "not litgpt's dict of tensors"),
        ({"lm_head.weight": 3}, "not litgpt's dict of tensors"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            read_litgpt_folder(write_litgpt(tmp_path / "lit", tensors | change))
        assert "\n" not in str(caught.value)
    missing = {name: value for name, value in tensors.items() if "mlp.fc_1" not in name}
    with pytest.raises(ValueError, match=r"transformer.h.0.mlp.fc_1.weight, transformer.h.1.mlp.fc_1.weight missing"):
        our_model(write_litgpt(tmp_path / "lit", missing))
    quantised = {name: value.to(torch.int8) for name, value in tensors.items()}
    with pytest.raises(ValueError, match=r"transformer.wte.weight has numbers of type int8; quantised models can't be"):
        our_model(write_litgpt(tmp_path / "lit", quantised))
    diverged = tensors | {"transformer.h.1.attn.proj.weight": torch.full((32, 32), torch.nan)}
    with pytest.raises(ValueError, match=r"^transformer.h.1.attn.proj.weight: numbers that are not finite"):
        our_model(write_litgpt(tmp_path / "lit", diverged))
    (tmp_path / "lit" / "lit_model.pth").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"not a file of torch\.save, or damaged"):
        read_litgpt_folder(tmp_path / "lit")
