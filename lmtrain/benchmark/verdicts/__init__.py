"""Simulates tables whose truth is known, and counts how often the verdicts of compare are wrong."""

from lmtrain.benchmark.verdicts.command import main

__all__ = ["main"]
