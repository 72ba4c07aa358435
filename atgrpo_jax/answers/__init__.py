"""Reads answers to mathematical problems, and decides whether two are equal.

It runs in the sandbox, because sympy may take very long for a text that a model wrote. So these
files import nothing else of this package.
"""
