"""Searches with Optuna: trials, their space, their study."""
