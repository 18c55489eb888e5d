"""Compares runs from the files in their folders; nothing in the folders is executed or changed."""
