"""Runs side by side, from the files that they leave: nothing of them is imported, resolved or written."""
