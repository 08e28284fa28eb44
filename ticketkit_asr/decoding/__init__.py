"""From scores to text, and how wrong it is."""
