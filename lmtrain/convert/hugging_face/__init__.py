"""Writes and reads models as the folders of Hugging Face's transformers."""
