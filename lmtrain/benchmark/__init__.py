"""Measures speed: each kind against what the machine does by itself."""
