"""Measures a training step against what the machine can do at best."""

from lmtrain.benchmark.step.command import main

__all__ = ["main"]
