"""Text from a model: the choice of each token, the context that the model sees, and several texts at once."""
