"""What a person sees: console, numbers, values and paths as text, texts without secrets."""
