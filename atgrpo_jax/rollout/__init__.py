"""Plays episodes of a team with an engine, for training and for evaluation. Needs no JAX."""
