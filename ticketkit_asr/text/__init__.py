"""Text: from words to labels and back."""
