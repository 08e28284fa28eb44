"""Features: from samples to spectra, and spectra kept on disk."""
