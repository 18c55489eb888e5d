"""Compares how soon runs and settings reach a value."""
