"""Holds the parts of tools/probe.py. Each looks at one thing of this machine, and knows no other."""
