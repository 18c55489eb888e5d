"""Runs the jobs of a sweep as a Slurm job array: launcher, queue and the task that runs on a node."""
