"""Finds the micro-batch size of a run whose `data.batch_size` is `auto`."""
