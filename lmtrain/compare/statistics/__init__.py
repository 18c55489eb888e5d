"""Whether the differences between runs are more than noise."""
