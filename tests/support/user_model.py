"""A user's model in the user's folder."""

from pathlib import Path

MY_MODEL = '''
import torch
from torch import nn


class Mine(nn.Module):
    """A bigram table."""

    def __init__(self, vocab_size: int, scale: float = 1.0, bias=True):
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)
        self.scale = scale
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if bias else 0.0

    def forward(self, tokens, targets=None):
        logits = self.table(tokens) * self.scale + self.bias
        if targets is None:
            return logits, None
        return logits, nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
'''


def write_my_model(folder: Path) -> None:
    (folder / "mymodels.py").write_text(MY_MODEL)
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "conf" / "model" / "mine.yaml").write_text("_target_: mymodels.Mine\nvocab_size: null\nscale: 0.5\n")
