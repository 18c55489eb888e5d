"""Checkpoints: their folder, what goes into one, and how it comes back."""
