"""What a person sees: console, units, paths, texts without secrets."""
