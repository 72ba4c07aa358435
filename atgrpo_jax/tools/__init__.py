"""Holds the commands beside training: check a task, prepare problem sets, write a model folder."""
