"""Model architectures, one per file. A model is called as `model(tokens, targets=None) -> (logits, loss)`."""
