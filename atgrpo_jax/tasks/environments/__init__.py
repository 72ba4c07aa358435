"""Holds environments that other people wrote, as tasks. See docs/environments.md."""
