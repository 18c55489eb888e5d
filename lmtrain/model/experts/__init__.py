"""Mixtures of experts, which take the place of MLPs."""
