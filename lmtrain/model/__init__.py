"""Architectures, one file each: `model(tokens, targets=None) -> (logits, loss)`."""
