"""Judges results that are looked at more than once: which runs were planned when, and keep, drop, or one more seed."""
