"""What a run would be, before it starts: its size, memory, time and likely mistakes."""
