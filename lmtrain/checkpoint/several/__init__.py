"""How several processes read and write the checkpoints of one run."""
