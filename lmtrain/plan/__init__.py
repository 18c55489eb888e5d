"""Plans a run before it starts: its size, memory, time and likely mistakes."""
