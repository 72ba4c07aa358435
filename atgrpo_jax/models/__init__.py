"""A transformer as functions of its parameters, its attention, its head, adapters. Knows no text."""
