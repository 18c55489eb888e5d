"""Measures how much faster several processes train than one, and what they send each other."""

from lmtrain.benchmark.scaling.command import main

__all__ = ["main"]
