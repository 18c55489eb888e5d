"""Terminal input and output: the console, options, formatted numbers and values, and the removal of secrets."""
