"""Makes runs that no training has made: from checkpoints of other programs, and from averages of checkpoints."""
