"""What is in a folder of token files."""
