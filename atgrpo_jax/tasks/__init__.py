"""Holds the problems and the contract that every task keeps. Knows no model and no engine."""
