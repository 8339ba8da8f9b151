"""The whole journey: the training loop, what it moves, and how it is set up."""
