"""Hugging Face Trainer with the Llama or GPT-2 of transformers, as its documentation shows it."""

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from turns import Turns, read_task

task = read_task()
size = task.model


class Blocks(Dataset):
    """Consecutive blocks of tokens with the targets of the last one, too, which labels alone would leave out."""

    def __init__(self) -> None:
        self.tokens = np.memmap(task.tokens, dtype=np.uint16, mode="r")

    def __len__(self) -> int:
        return task.blocks

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        window = torch.from_numpy(self.tokens[i * task.block_size :][: task.block_size + 1].astype(np.int64))
        return {"input_ids": window[:-1], "labels": window[:-1], "shift_labels": window[1:]}


def build_llama() -> LlamaForCausalLM:
    """Return transformers' Llama with the initial weights of the contest."""
    config = LlamaConfig(
        vocab_size=size["vocab_size"],
        hidden_size=size["d_model"],
        intermediate_size=size["d_ff"],
        num_hidden_layers=size["n_layer"],
        num_attention_heads=size["n_head"],
        num_key_value_heads=size["n_head"],
        max_position_embeddings=task.block_size,
        rms_norm_eps=size["norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": size["rope_base"]},
        tie_word_embeddings=True,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    names = {
        ".embedding.": "model.embed_tokens.",
        ".layers.": "model.layers.",
        ".norm.": "model.norm.",
        "attention_norm.": "input_layernorm.",
        "mlp_norm.": "post_attention_layernorm.",
        **{f"attention.{part}.": f"self_attn.{part}_proj." for part in "qkvo"},
        **{f"mlp.{part}.": f"mlp.{part}_proj." for part in ("gate", "up", "down")},
    }
    return load(LlamaForCausalLM(config), names)


def build_gpt2() -> GPT2LMHeadModel:
    """Return transformers' GPT-2 with the initial weights of the contest. It always has biases, which start as zero."""
    config = GPT2Config(
        vocab_size=size["vocab_size"],
        n_positions=task.block_size,
        n_embd=size["d_model"],
        n_layer=size["n_layer"],
        n_head=size["n_head"],
        activation_function="gelu" if size["gelu"] == "exact" else "gelu_new",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    names = {
        ".embedding.": "transformer.wte.",
        ".positions.": "transformer.wpe.",
        ".layers.": "transformer.h.",
        ".norm.": "transformer.ln_f.",
        "attention_norm.": "ln_1.",
        "mlp_norm.": "ln_2.",
        "attention.qkv.": "attn.c_attn.",
        "attention.o.": "attn.c_proj.",
        "mlp.up.": "mlp.c_fc.",
        "mlp.down.": "mlp.c_proj.",
    }
    return load(GPT2LMHeadModel(config), names)


def load(model: PreTrainedModel, names: dict[str, str]) -> PreTrainedModel:
    """Copy the contest's initial weights into a model of transformers."""
    parameters = dict(model.named_parameters())
    for name, value in torch.load(task.weights, mmap=True).items():
        name = f".{name}"
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        conv1d = value.ndim == 2 and (".attn.c_" in name or ".mlp.c_" in name)  # GPT-2 stores these transposed
        with torch.no_grad():
            parameters[name].copy_(value.T if conv1d else value)
    return model


class TakeTurns(TrainerCallback):
    """Reports the Trainer's own logs to the contest."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if logs and "loss" in logs:
            self.turns.report(state.global_step, [float(logs["loss"])], mean=True)


model = build_llama() if size["kind"] == "llama" else build_gpt2()
arguments = TrainingArguments(
    output_dir=task.folder,
    per_device_train_batch_size=task.batch_size,
    max_steps=task.max_steps,
    learning_rate=task.lr,
    lr_scheduler_type="constant",
    weight_decay=task.weight_decay,
    adam_beta1=task.betas[0],
    adam_beta2=task.betas[1],
    max_grad_norm=task.grad_clip,
    optim="adamw_torch_fused",
    bf16=task.dtype == "bfloat16",
    tf32=True if task.device == "cuda" else None,
    torch_compile=task.compile,
    use_cpu=task.device == "cpu",
    train_sampling_strategy="sequential",
    remove_unused_columns=False,  # keeps shift_labels
    logging_steps=task.log_interval,
    logging_first_step=True,
    eval_strategy="no",
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
)
turns = Turns(
    ("transformers", "accelerate"),
    parameters=sum(p.numel() for p in model.parameters()),
    dtype=task.dtype,
    compiled=task.compile,
)
Trainer(model=model, args=arguments, train_dataset=Blocks(), callbacks=[TakeTurns(turns)]).train()
