"""Turns text into token ids and back. Imports ``common`` only."""
