"""How chapters are written down: one HTML page, Markdown, CSV."""
