"""Simulates one kind of mistake in each module."""
