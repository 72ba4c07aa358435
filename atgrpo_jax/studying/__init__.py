"""Compares arms over several seeds, with predictions that were written down before."""
