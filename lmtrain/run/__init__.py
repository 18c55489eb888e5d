"""Starts runs, writes their files, and reads runs back."""
