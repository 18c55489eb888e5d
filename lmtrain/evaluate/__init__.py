"""Measures language models: losses of tokens, documents and positions, and tasks of the EleutherAI harness."""
