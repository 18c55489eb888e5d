"""Helpers of the training loop: bad steps, stop requests, timing and evaluation."""
