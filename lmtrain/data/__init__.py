"""Token files: their format, how they are made from text, the order they are read in, and the loader."""
