"""Writes token files: encoding, a journal that survives kills, several machines."""
