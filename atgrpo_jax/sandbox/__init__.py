"""Runs programs that models wrote, kept apart from everything else. Imports ``common`` only."""
