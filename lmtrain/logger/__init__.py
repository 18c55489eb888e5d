"""Loggers. `metrics.jsonl` and the console always get the metrics, and so does any number of further loggers."""
