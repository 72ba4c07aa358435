"""Defines a transformer as functions of its parameters, its attention, head and adapters."""
