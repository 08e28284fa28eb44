"""Corpora: each module finds, checks and opens one, as utterances in train, dev and test splits."""
