"""Writes token files, with several processes or many machines, and with a journal that survives kills."""
