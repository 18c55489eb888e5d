"""Token files: their format, how text becomes token files, the order of the samples, and the loader."""
