"""Says in words what the statistics found."""
