"""Runs sweeps and searches: many runs from one command."""
