"""What a comparison is shown as: terminal, tables, pictures, a web page."""
