"""Makes runs from the checkpoints of nanoGPT."""
