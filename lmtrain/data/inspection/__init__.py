"""Inspects folders of token files: statistics, repeated text, problems, and a picture."""
