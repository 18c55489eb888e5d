"""Writes models as GGUF files, which llama.cpp loads."""
