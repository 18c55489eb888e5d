"""Text for preparing a corpus: its sources, their documents, and the part that is held out."""
