"""Text to ids and back. Imports ``common`` only."""
