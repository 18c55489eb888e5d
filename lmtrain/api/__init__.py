"""The Python API: what `from lmtrain import …` gives, besides the part that reads runs (`run/reading/`)."""
