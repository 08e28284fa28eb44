"""Sound: files in, samples out, and what is done to clean speech."""
