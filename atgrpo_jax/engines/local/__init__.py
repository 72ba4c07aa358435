"""Draws samples in this process, on JAX devices: continuous batching over paged attention."""
