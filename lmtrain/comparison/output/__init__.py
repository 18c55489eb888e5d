"""Shows a comparison as terminal text, tables, pictures and a web page."""
