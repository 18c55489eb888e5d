"""Optimizers, one a file: each takes the model's named parameters."""
