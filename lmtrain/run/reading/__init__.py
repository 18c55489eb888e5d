"""Reads runs back from their directories: their files, names and models."""
