"""What a run keeps of itself, and how it is read back."""
