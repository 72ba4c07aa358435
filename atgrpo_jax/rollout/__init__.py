"""Plays episodes of a team with an engine, for training and for scores. Needs no JAX."""
