"""How the processes of one run share its work: one process alone, or DDP."""
