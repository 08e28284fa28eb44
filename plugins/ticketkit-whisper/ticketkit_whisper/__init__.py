"""Whisper for ticketkit: the backbone `whisper` and the trainer `whisper_seq2seq`."""
