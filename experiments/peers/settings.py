"""What is trained, and who takes part."""

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Setting:
    """A model, a batch and how to measure them.

    Attributes:
        title: What the report calls it.
        overrides: The overrides of lmtrain's config, from which all contenders get their sizes.
        steps: Optimizer steps per round, by kind of device.
        rounds: Rounds that are enough for steady medians on a quiet machine.
        memory_gb: The most memory that a contender is expected to need, until its own peak is known.
    """

    title: str
    overrides: tuple[str, ...]
    steps: dict[str, int]
    rounds: int
    memory_gb: float


PRODUCTION = ("model=llama_50m", "trainer.gradient_accumulation_steps=1")
TINY = ("model.n_layer=1", "data.batch_size=2", "data.block_size=16")
SETTINGS = {
    "production_16x512": Setting(
        "production model, 16 × 512",
        (*PRODUCTION, "data.batch_size=16", "data.block_size=512"),
        steps={"cpu": 1, "cuda": 20},
        rounds=3,
        memory_gb=14,
    ),
    "production_4x256": Setting(
        "production model, 4 × 256",
        (*PRODUCTION, "data.batch_size=4", "data.block_size=256"),
        steps={"cpu": 2, "cuda": 50},
        rounds=5,
        memory_gb=4,
    ),
    "shakespeare_char": Setting(
        "small Shakespeare model, 12 × 64",
        ("experiments=shakespeare_char", "model.vocab_size=65"),
        steps={"cpu": 25, "cuda": 200},
        rounds=9,
        memory_gb=1.5,
    ),
    "gpt2_124m": Setting(
        "GPT-2 124M, 32 × 1024",
        (
            "model=gpt2",
            "model.bias=false",
            "model.vocab_size=50304",
            "data.batch_size=32",
            "data.block_size=1024",
            "trainer.gradient_accumulation_steps=1",
        ),
        steps={"cpu": 1, "cuda": 20},
        rounds=7,
        memory_gb=70,
    ),
    "tiny": Setting(
        "a tiny GPT-2, to try the contest itself",
        ("experiments=tiny", "model.vocab_size=65", *TINY),
        steps={"cpu": 1, "cuda": 1},
        rounds=3,
        memory_gb=1,
    ),
    "tiny_llama": Setting(
        "a tiny Llama, to try the contest itself",
        ("model=llama_1m", "model.vocab_size=500", "trainer.gradient_accumulation_steps=1", *TINY),
        steps={"cpu": 1, "cuda": 1},
        rounds=3,
        memory_gb=1,
    ),
}


@dataclass(frozen=True)
class Entry:
    """A contender: a tool with a number format, compiled or not.

    Attributes:
        label: What the report calls it.
        script: Its file in `contenders/`, or `lmtrain`: the command itself.
        tool: The package without which it cannot run.
        dtype: Number format. lmtrain chooses its own.
        compile: Whether it is compiled. lmtrain chooses by itself.
        overrides: More overrides, for lmtrain.
        second_choice: Takes part only where bfloat16 is not faster, in place of the same tool in bfloat16.
    """

    label: str
    script: str
    tool: str
    dtype: str = "float32"
    compile: bool = False
    overrides: tuple[str, ...] = ()
    second_choice: bool = False

    @property
    def environment(self) -> str | None:
        """The requirements file of its environment; None means the environment that runs the contest."""
        return None if self.tool == "lmtrain" else self.tool


FLOAT32, BFLOAT16 = ("system.dtype=float32",), "bfloat16"
PLAIN = ("plain PyTorch loop", "plain_loop.py", "torch")
HUGGING_FACE = ("Hugging Face Trainer", "hf_trainer.py", "transformers")
LIGHTNING = ("PyTorch Lightning", "lightning_trainer.py", "lightning")
LITGPT = ("litgpt", "litgpt_pretrain.py", "litgpt")
NANOGPT = ("nanoGPT-like script", "nanogpt_like.py", "torch")
BASE = "plain"  # logs every loss; ratios are to it
GPU_BASE = "nanogpt-bfloat16"  # on a GPU, ratios are to this one: nobody trains eagerly in float32 there
ENTRIES = {
    "lmtrain": Entry("lmtrain, defaults", "lmtrain", "lmtrain"),
    "lmtrain-float32": Entry("lmtrain, float32", "lmtrain", "lmtrain", overrides=FLOAT32),
    "lmtrain-bare": Entry("bare loop with lmtrain's model", "lmtrain_bare.py", "lmtrain", overrides=FLOAT32),
    BASE: Entry(*PLAIN),
    "plain-bfloat16": Entry(*PLAIN, BFLOAT16),
    "hf": Entry(*HUGGING_FACE),
    "hf-compiled": Entry(*HUGGING_FACE, compile=True, second_choice=True),
    "hf-bfloat16": Entry(*HUGGING_FACE, BFLOAT16, compile=True),
    "lightning": Entry(*LIGHTNING),
    "lightning-compiled": Entry(*LIGHTNING, compile=True, second_choice=True),
    "lightning-bfloat16": Entry(*LIGHTNING, BFLOAT16, compile=True),
    "litgpt": Entry(*LITGPT, compile=True),
    "litgpt-bfloat16": Entry(*LITGPT, BFLOAT16, compile=True),
    "nanogpt": Entry(*NANOGPT, compile=True),
    "nanogpt-bfloat16": Entry(*NANOGPT, BFLOAT16, compile=True),
}
