"""Checkpoints: their folder and files, what they contain, and how a run is saved and restored."""
