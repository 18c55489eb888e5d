"""Runs of other programs, in and out."""
