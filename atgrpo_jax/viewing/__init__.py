"""Shows a run to people: one HTML page that needs no network, or a text."""
