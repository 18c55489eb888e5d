"""Where the text comes from: sources, the documents they give, and what of them is held out."""
