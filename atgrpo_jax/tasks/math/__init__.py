"""Holds the task of mathematical problems. ``answers`` compares answers, in the sandbox."""
