"""Tests whether the differences between runs are larger than the noise between seeds."""
