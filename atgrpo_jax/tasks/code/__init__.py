"""Programming problems: a coder and a tester."""
