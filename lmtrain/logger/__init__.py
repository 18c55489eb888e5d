"""Where metrics go: `metrics.jsonl` and the console always, and any number of loggers beside them."""
