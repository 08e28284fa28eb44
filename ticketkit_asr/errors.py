"""Errors of speech alone; everything else raises what ticketkit exports."""

from ticketkit import DataError, RunError


class BadAudioError(DataError):
    """One sound file cannot be used; a corpus may go on without it."""


class TrainingError(RunError):
    """A training diverged."""
