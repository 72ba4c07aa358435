"""Holds the task of programming problems: a coder and a tester."""
