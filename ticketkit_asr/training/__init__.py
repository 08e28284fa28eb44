"""Training: batches, steps, epochs, and which of them dev likes best."""
