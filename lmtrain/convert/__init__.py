"""Converts runs of other programs into lmtrain runs."""
