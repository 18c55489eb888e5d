"""What a machine can do for a run: number formats, compilation, speed, memory, random generators."""
