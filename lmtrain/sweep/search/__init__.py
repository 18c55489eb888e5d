"""Searches for good settings with Optuna: the search space, the study and its trials."""
