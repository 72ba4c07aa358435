"""Runs programs that models wrote, isolated from everything else. Imports ``common`` only."""
