"""Sweeps: many runs of one command, and searches."""
